package orchestrator

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/swarm"
)

var rewrite = flag.Bool("rewrite", false, "write the transcripts' outputs instead of comparing them")

// Each transcript is a story: commands, and after ---- what came of them. The
// nodes, the store and the decisions are in virtual time, and after each decision
// a second one must write nothing and the audit must find nothing.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var got string
			synctest.Test(t, func(t *testing.T) { got = play(t, string(data)) })
			if *rewrite {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != string(data) {
				t.Errorf("%s: got\n%s\nwant\n%s\n(-rewrite accepts it)", file, got, data)
			}
		})
	}
}

// play runs the commands of a transcript and returns it with the outputs that
// came of them.
func play(t *testing.T, text string) string {
	w := newWorld(t)
	defer w.close()
	var out strings.Builder
	for block := range strings.SplitSeq(strings.TrimRight(text, "\n"), "\n\n") {
		commands, _, _ := strings.Cut(block, "\n----")
		var result strings.Builder
		for line := range strings.Lines(commands) {
			line = strings.TrimSpace(line)
			if line != "" && !strings.HasPrefix(line, "#") {
				result.WriteString(w.command(strings.Fields(line)))
			}
		}
		out.WriteString(strings.TrimRight(commands, "\n"))
		if strings.Contains(block, "\n----") || result.Len() > 0 {
			out.WriteString("\n----\n" + strings.TrimRight(result.String(), "\n"))
		}
		out.WriteString("\n\n")
	}
	return strings.TrimRight(out.String(), "\n") + "\n"
}

// command runs one command and returns what it prints.
func (w *world) command(words []string) string {
	var err error
	switch args := words[1:]; words[0] {
	case "nodes":
		n, _ := strconv.Atoi(args[0])
		w.addNodes(n)
		w.settle()
	case "network":
		w.network(args[0], strings.Join(args[1:], ""))
	case "network-rm":
		err = w.o.RemoveNetwork(w.ctx, args[0])
	case "service":
		s := spec(args[0], "ok", 1)
		edit(&s, args[1:])
		_, _, err = w.o.CreateService(w.ctx, s)
		w.settle()
	case "update":
		err = w.edit(args[0], func(s *swarm.ServiceSpec) { edit(s, args[1:]) })
		w.settle()
	case "rollback":
		s, _ := w.o.GetService(w.ctx, args[0], false)
		_, err = w.o.UpdateService(w.ctx, s.ID, s.Version.Index, swarm.ServiceSpec{}, true)
		w.settle()
	case "rm":
		err = w.o.RemoveService(w.ctx, args[0])
		w.settle()
	case "cut":
		w.cut[args[0]] = true
	case "heal":
		delete(w.cut, args[0])
		w.settle()
	case "node":
		n, _ := w.o.GetNode(w.ctx, args[0])
		for _, arg := range args[1:] {
			if key, value, ok := strings.Cut(arg, "="); ok {
				n.Spec.Labels = withLabel(n.Spec.Labels, key, value)
			} else {
				n.Spec.Availability = swarm.NodeAvailability(arg)
			}
		}
		err = w.o.UpdateNode(w.ctx, n.ID, n.Version.Index, n.Spec)
		w.settle()
	case "node-rm":
		err = w.o.RemoveNode(w.ctx, args[0], len(args) > 1)
		w.settle()
	case "restart":
		w.restart()
	case "wait":
		d, _ := time.ParseDuration(args[0])
		w.advance(d)
	case "tasks":
		return w.tasks()
	case "status":
		return w.status(args[0])
	default:
		w.t.Fatalf("unknown command %q", words[0])
	}
	if err != nil {
		return err.Error() + "\n"
	}
	return ""
}

func (w *world) status(service string) string {
	s, err := w.o.GetService(w.ctx, service, false)
	if err != nil {
		return err.Error() + "\n"
	}
	all, _ := w.o.ServiceStatuses(w.ctx)
	out := fmt.Sprintf("%d/%d running, image %s", all[s.ID].RunningTasks, all[s.ID].DesiredTasks, s.Spec.TaskTemplate.ContainerSpec.Image)
	if u := s.UpdateStatus; u != nil {
		out += fmt.Sprintf(", %s: %s", u.State, u.Message)
	}
	return out + "\n"
}

// edit applies words such as image=crash or parallelism=2 to a spec.
func edit(s *swarm.ServiceSpec, words []string) {
	for _, word := range words {
		key, value, _ := strings.Cut(word, "=")
		number, _ := strconv.ParseUint(value, 10, 64)
		duration, _ := time.ParseDuration(value)
		config := swarm.UpdateConfig{Parallelism: 1}
		if s.UpdateConfig != nil {
			config = *s.UpdateConfig
		}
		var policy swarm.RestartPolicy
		if s.TaskTemplate.RestartPolicy != nil {
			policy = *s.TaskTemplate.RestartPolicy
		}
		container := *s.TaskTemplate.ContainerSpec
		switch key {
		case "replicas":
			s.Mode = swarm.ServiceMode{Replicated: &swarm.ReplicatedService{Replicas: &number}}
		case "global":
			s.Mode = swarm.ServiceMode{Global: &swarm.GlobalService{}}
		case "image":
			container.Image = value
		case "net":
			s.TaskTemplate.Networks = append(s.TaskTemplate.Networks[:len(s.TaskTemplate.Networks):len(s.TaskTemplate.Networks)], swarm.NetworkAttachmentConfig{Target: value})
		case "no-net":
			s.TaskTemplate.Networks = nil
		case "constraint":
			s.TaskTemplate.Placement = &swarm.Placement{Constraints: []string{value}}
		case "max-per-node":
			s.TaskTemplate.Placement = &swarm.Placement{MaxReplicas: number}
		case "force":
			s.TaskTemplate.ForceUpdate++
		case "condition":
			policy.Condition = swarm.RestartPolicyCondition(value)
		case "attempts":
			policy.MaxAttempts = &number
		case "delay":
			policy.Delay = &duration
		case "parallelism":
			config.Parallelism = number
		case "update-delay":
			config.Delay = duration
		case "monitor":
			config.Monitor = duration
		case "order":
			config.Order = swarm.UpdateOrder(value)
		case "on-failure":
			config.FailureAction = swarm.FailureAction(value)
		}
		s.TaskTemplate.ContainerSpec = &container
		if policy != (swarm.RestartPolicy{}) {
			s.TaskTemplate.RestartPolicy = &policy
		}
		if config != (swarm.UpdateConfig{Parallelism: 1}) {
			s.UpdateConfig = &config
		}
	}
}
