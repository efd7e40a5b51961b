package durable_test

import (
	"os"
	"path/filepath"
	"testing"

	"netd/internal/durable"
)

// WriteFile makes missing folders, replaces what was there, keeps the mode and
// leaves no temporary file.
func TestWriteFileReplaces(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "b", "state.json")
	for _, content := range []string{"first", "second, longer", ""} {
		if err := durable.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != content {
			t.Fatalf("got %q, %v; want %q", got, err, content)
		}
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v; want 0600", info.Mode(), err)
	}
	entries, _ := os.ReadDir(filepath.Dir(path))
	if len(entries) != 1 {
		t.Fatalf("%d files left, want 1", len(entries))
	}
}

// A target that is a folder is refused, and the temporary file is removed.
func TestWriteFileOntoFolder(t *testing.T) {
	dir := t.TempDir()
	target := filepath.Join(dir, "taken")
	if err := os.MkdirAll(filepath.Join(target, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := durable.WriteFile(target, []byte("data"), 0o600); err == nil {
		t.Fatal("wrote onto a folder")
	}
	entries, _ := os.ReadDir(dir)
	if len(entries) != 1 {
		t.Fatalf("%d files left, want 1", len(entries))
	}
}
