package netd_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// The house rules hold in the whole tree. Each finding names the file, the line
// and the rule; a rule that is in the way is changed here, with the reason.
func TestHouseRules(t *testing.T) {
	files := sources(t)
	for name, check := range map[string]func(*testing.T, []source){
		"floors":          checkFloors,
		"technologies":    checkTechnologies,
		"sizes":           checkSizes,
		"packageComments": checkPackageComments,
		"packageState":    checkPackageState,
		"forbiddenCalls":  checkForbiddenCalls,
		"markers":         checkMarkers,
		"folderNames":     checkFolderNames,
	} {
		t.Run(name, func(t *testing.T) { check(t, files) })
	}
}

// A package imports only packages of a lower floor; every package has a floor.
func checkFloors(t *testing.T, files []source) {
	const root = "." // the shared vocabulary
	floors := map[string]int{
		"netd":                   4,
		"netd/api":               3,
		"netd/debug":             3,
		"netd/demo":              3,
		"netd/node":              3,
		"orchestrator":           2,
		"orchestrator/scheduler": 2,
		"orchestrator/store":     2,
		"balancer":               1,
		"dispatch":               1,
		"dns":                    1,
		"gossip":                 1,
		"ingress":                1,
		"ipam":                   1,
		"netd/task":              1,
		"pki":                    1,
		"vxlan":                  1,
		root:                     0,
	}
	// What may be imported although the floor is the same.
	beside := map[string][]string{
		"dispatch":         {"pki"},
		"orchestrator":     {"orchestrator/scheduler", "orchestrator/store"},
		"internal/nettest": {"internal/netns"},
	}
	// What may not be imported although the floor is lower.
	kernel := []string{"balancer", "dns", "gossip", "ingress", "netd/task", "vxlan", "internal/netns"}
	never := map[string][]string{
		"balancer":               {root},
		"vxlan":                  {root},
		"dns":                    {root},
		"ingress":                {root},
		"netd/node":              {"orchestrator", "orchestrator/scheduler", "orchestrator/store"},
		"orchestrator":           kernel,
		"orchestrator/scheduler": kernel,
		"orchestrator/store":     kernel,
	}
	for _, f := range files {
		floor, known := floors[f.dir]
		if strings.HasPrefix(f.dir, "internal/") {
			known = true // floor 0: plumbing that could be in the standard library
		}
		if !known {
			t.Errorf("%s: package %q has no floor: give it one in checkFloors", f.at(f.file.Package), f.dir)
			continue
		}
		for _, spec := range f.file.Imports {
			to, ours := f.imported(spec)
			switch {
			case !ours && (f.dir != root || f.test || stdlib(to)):
			case !ours:
				t.Errorf("%s: the shared vocabulary must not import %s: it has the standard library only", f.at(spec.Pos()), to)
			case f.test && (to == "internal/nettest" || to == f.dir):
			case to == "internal/nettest":
				t.Errorf("%s: only tests may import internal/nettest", f.at(spec.Pos()))
			case slices.Contains(never[f.dir], to):
				t.Errorf("%s: %s must never import %s", f.at(spec.Pos()), f.dir, to)
			case floors[to] >= floor && !slices.Contains(beside[f.dir], to):
				t.Errorf("%s: %s (floor %d) must not import %s (floor %d): imports point down", f.at(spec.Pos()), f.dir, floor, to, floors[to])
			}
		}
	}
}

// Each foreign technology is known to the packages that are named for it, and to
// no other: replacing one is a change in one place.
func checkTechnologies(t *testing.T, files []source) {
	homes := map[string][]string{
		"github.com/google/nftables":      {"balancer", "ingress", "internal/nettest", "vxlan"},
		"github.com/hashicorp/go-memdb":   {"orchestrator/store"},
		"github.com/hashicorp/memberlist": {"gossip"},
		"github.com/hashicorp/raft":       {"dispatch", "orchestrator/store"},
		"github.com/miekg/dns":            {"dns"},
		"github.com/moby/moby/client":     {"netd/demo"},
		"github.com/moby/ipvs":            {"balancer"},
		"github.com/vishvananda/netlink":  {"balancer", "ingress", "internal/netns", "internal/nettest", "netd/demo", "netd/task", "vxlan"},
		"github.com/vishvananda/netns":    {"internal/netns", "internal/nettest", "netd/demo", "vxlan"},
		"go.etcd.io/bbolt":                {"orchestrator/store"},
		"crypto/x509":                     {"pki", "dispatch"},
		"log":                             {"dispatch", "gossip", "netd/api", "netd/task", "orchestrator/store"}, // only to hand one to a library,
		"os/exec":                         {"netd/demo", "netd/task"},
		"unsafe":                          {"internal/netns", "netd/task"},
	}
	for _, f := range files {
		if f.test {
			continue
		}
		for _, spec := range f.file.Imports {
			path, _ := strconv.Unquote(spec.Path.Value)
			for tech, dirs := range homes {
				if (path == tech || !stdlib(tech) && strings.HasPrefix(path, tech+"/")) && !slices.Contains(dirs, f.dir) {
					t.Errorf("%s: %s must not import %s: its home is %s", f.at(spec.Pos()), f.dir, path, strings.Join(dirs, ", "))
				}
			}
		}
	}
}

// Functions have at most 80 lines and files at most 500, tests included.
func checkSizes(t *testing.T, files []source) {
	const maxFunc, maxFile = 80, 500
	for _, f := range files {
		if n := f.line(f.file.FileEnd); n > maxFile+1 {
			t.Errorf("%s: file has %d lines, at most %d", f.at(f.file.Package), n-1, maxFile)
		}
		for _, decl := range f.file.Decls {
			fn, ok := decl.(*ast.FuncDecl)
			if !ok {
				continue
			}
			if n := f.line(fn.End()) - f.line(fn.Pos()) + 1; n > maxFunc {
				t.Errorf("%s: function %s has %d lines, at most %d", f.at(fn.Pos()), fn.Name.Name, n, maxFunc)
			}
		}
	}
}

// Each package has exactly one package comment, which says what it owns and what
// it does not do.
func checkPackageComments(t *testing.T, files []source) {
	at := map[string][]string{}
	for _, f := range files {
		if f.test {
			continue
		}
		at[f.dir] = append(at[f.dir], []string{}...)
		if f.file.Doc != nil {
			at[f.dir] = append(at[f.dir], f.at(f.file.Doc.Pos()))
		}
	}
	for dir, places := range at {
		if len(places) != 1 {
			t.Errorf("%s: package has %d package comments %v, want exactly one", dir, len(places), places)
		}
	}
}

// A process may hold several daemons: no package keeps state, none acts on import.
func checkPackageState(t *testing.T, files []source) {
	for _, f := range files {
		for _, decl := range f.file.Decls {
			switch d := decl.(type) {
			case *ast.FuncDecl:
				if d.Name.Name == "init" && d.Recv == nil {
					t.Errorf("%s: no init functions: importing a package must do nothing", f.at(d.Pos()))
				}
			case *ast.GenDecl:
				if d.Tok != token.VAR || f.test {
					continue
				}
				for _, spec := range d.Specs {
					if v := spec.(*ast.ValueSpec); !f.constantLike(v) {
						t.Errorf("%s: package-level var %s: no package state but errors, compiled patterns and addresses", f.at(v.Pos()), v.Names[0].Name)
					}
				}
			}
		}
	}
}

// Calls that belong to a few packages, or to none, are made nowhere else.
func checkForbiddenCalls(t *testing.T, files []source) {
	rules := []struct {
		calls   *regexp.Regexp // package.Function
		where   string         // "all", "code" (not tests) or "tests"
		allowed []string       // folders
		why     string
	}{
		{regexp.MustCompile(`^context\.(Background|TODO)$`), "code", []string{"netd", "internal/nettest"}, "a context comes from the caller"},
		{regexp.MustCompile(`^runtime\.LockOSThread$`), "all", []string{"internal/netns", "netd/task"}, "use netns.Do"},
		{regexp.MustCompile(`^(unix|netns)\.(Setns|Unshare|Set)$`), "all", []string{"internal/netns", "netd/task"}, "use netns.Do"},
		{regexp.MustCompile(`^(os\.StartProcess|syscall\.(ForkExec|StartProcess|Exec))$`), "code", []string{"netd/task"}, "processes are netd/task's"},
		{regexp.MustCompile(`^os\.Exit$`), "code", []string{"netd"}, "return an error"},
		{regexp.MustCompile(`^slog\.(Default|SetDefault|Debug|Info|Warn|Error|Log)(Context)?$`), "code", nil, "the logger is passed in"},
		{regexp.MustCompile(`^fmt\.Print(f|ln)?$`), "code", []string{"netd"}, "write to the writer that was passed in"},
		{regexp.MustCompile(`^netlink\.(Link|Addr|Route|Neigh|Rule|Xfrm\w*)(Add|Append|Change|Del|Replace|List|Get|Set|By)`), "all",
			[]string{"internal/netns", "internal/nettest"}, "use a handle that is bound to a namespace"},
		{regexp.MustCompile(`^time\.Sleep$`), "tests", nil, "wait for an event, or poll with nettest.Eventually"},
		{regexp.MustCompile(`^(t|b|f|tb)\.Skip(f|Now)?$`), "tests", nil, "never skip silently: use nettest.Require or nettest.Root"},
	}
	for _, f := range files {
		discards := rapidFuncs(f.file)
		ast.Inspect(f.file, func(n ast.Node) bool {
			name, pos := qualified(n)
			within := func(fn *ast.FuncLit) bool { return fn.Pos() < pos && pos < fn.End() }
			if name == "" || name == "t.Skip" && slices.ContainsFunc(discards, within) {
				return true
			}
			for _, r := range rules {
				applies := r.where == "all" || (r.where == "tests") == f.test
				if applies && !slices.Contains(r.allowed, f.dir) && r.calls.MatchString(name) {
					t.Errorf("%s: no %s here: %s", f.at(pos), name, r.why)
				}
			}
			return true
		})
	}
}

// Unfinished work is an issue, not a comment.
func checkMarkers(t *testing.T, files []source) {
	marker := regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME|XX` + `X)\b`)
	for _, f := range files {
		for _, group := range f.file.Comments {
			for _, c := range group.List {
				if m := marker.FindString(c.Text); m != "" {
					t.Errorf("%s: no %s in comments: open an issue", f.at(c.Pos()), m)
				}
			}
		}
	}
}

// Names say what a thing is.
func checkFolderNames(t *testing.T, files []source) {
	empty := []string{"base", "common", "helpers", "lib", "misc", "shared", "types", "util", "utils"}
	for _, f := range files {
		if slices.Contains(empty, filepath.Base(f.dir)) {
			t.Errorf("%s: package name %q says nothing", f.at(f.file.Package), filepath.Base(f.dir))
		}
	}
}

// source is one parsed Go file of the module.
type source struct {
	dir  string // folder of its package, "." for the root
	path string
	test bool
	file *ast.File
	fset *token.FileSet
}

// sources parses every Go file that is not generated, on whatever platform it
// builds. Packages are those that the go command sees.
func sources(t *testing.T) []source {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), "go", "list", "-e", "-find", "-json=Dir,ImportPath,GoFiles,TestGoFiles,XTestGoFiles,IgnoredGoFiles", "./...")
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, &stderr)
	}
	var all []source
	fset := token.NewFileSet()
	for dec := json.NewDecoder(bytes.NewReader(out)); dec.More(); {
		var p struct {
			Dir, ImportPath                                    string
			GoFiles, TestGoFiles, XTestGoFiles, IgnoredGoFiles []string
		}
		if err := dec.Decode(&p); err != nil {
			t.Fatal(err)
		}
		dir := strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
		if dir == "" {
			dir = "."
		}
		for _, name := range slices.Concat(p.GoFiles, p.TestGoFiles, p.XTestGoFiles, p.IgnoredGoFiles) {
			file, err := parser.ParseFile(fset, filepath.Join(p.Dir, name), nil, parser.ParseComments|parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			if !ast.IsGenerated(file) {
				all = append(all, source{dir, filepath.Join(dir, name), strings.HasSuffix(name, "_test.go"), file, fset})
			}
		}
	}
	return all
}

// module is the module's path in go.mod.
const module = "netd"

func (s source) line(pos token.Pos) int { return s.fset.Position(pos).Line }

func (s source) at(pos token.Pos) string { return fmt.Sprintf("%s:%d", s.path, s.line(pos)) }

// imported returns the folder of an imported package of ours, or a foreign path.
func (s source) imported(spec *ast.ImportSpec) (path string, ours bool) {
	path, _ = strconv.Unquote(spec.Path.Value)
	if path == module {
		return ".", true
	}
	return strings.CutPrefix(path, module+"/")
}

// stdlib tells the standard library from modules, whose first element has a dot.
func stdlib(path string) bool {
	first, _, _ := strings.Cut(path, "/")
	return !strings.Contains(first, ".")
}

// constantLike reports whether a package-level variable is one only because the
// language has no constant of its type.
func (s source) constantLike(v *ast.ValueSpec) bool {
	linked := s.dir == "netd" && v.Names[0].Name == "version" // set with -ldflags -X
	if len(v.Names) == 1 && (v.Names[0].Name == "_" || linked) {
		return true
	}
	if len(v.Values) != len(v.Names) {
		return false
	}
	for _, value := range v.Values {
		var name string
		switch value := value.(type) {
		case *ast.CallExpr:
			name, _ = qualified(value.Fun)
		case *ast.CompositeLit:
			name, _ = qualified(value.Type)
		}
		switch {
		case name == "errors.New", name == "fmt.Errorf", name == "netd.Errorf", name == "Errorf":
		case name == "regexp.MustCompile":
		case strings.HasPrefix(name, "netip."), name == "MAC":
		default:
			return false
		}
	}
	return true
}

// rapidFuncs returns the function literals that a property test calls: a Skip in
// one discards a drawn case, it does not skip a test.
func rapidFuncs(file *ast.File) []*ast.FuncLit {
	var found []*ast.FuncLit
	ast.Inspect(file, func(n ast.Node) bool {
		if fn, ok := n.(*ast.FuncLit); ok && len(fn.Type.Params.List) == 1 {
			if ptr, ok := fn.Type.Params.List[0].Type.(*ast.StarExpr); ok {
				if name, _ := qualified(ptr.X); name == "rapid.T" {
					found = append(found, fn)
				}
			}
		}
		return true
	})
	return found
}

// qualified returns the name of a selector such as time.Sleep, or of a plain
// identifier that is called on its own.
func qualified(n ast.Node) (string, token.Pos) {
	switch n := n.(type) {
	case *ast.SelectorExpr:
		if x, ok := n.X.(*ast.Ident); ok {
			return x.Name + "." + n.Sel.Name, n.Pos()
		}
	case *ast.Ident:
		return n.Name, n.Pos()
	}
	return "", token.NoPos
}
