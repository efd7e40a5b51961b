package task

import (
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"netd"
)

// The real-time signals that are free for programs (signal(7); glibc keeps 32, 33).
const (
	sigRTMin = 34
	sigRTMax = 64
)

// parseSignal reads a stop signal as Docker does: TERM, SIGTERM, 15, RTMIN+3;
// "" is SIGTERM.
func parseSignal(text string) (syscall.Signal, error) {
	if text == "" {
		return unix.SIGTERM, nil
	}
	bad := netd.Errorf(netd.ErrInvalid, "invalid signal: %s", text)
	if n, err := strconv.Atoi(text); err == nil {
		if n < 1 || n > sigRTMax {
			return 0, bad
		}
		return syscall.Signal(n), nil
	}
	name := strings.TrimPrefix(strings.ToUpper(text), "SIG")
	for prefix, base := range map[string]int{"RTMIN": sigRTMin, "RTMAX": sigRTMax} {
		rest, ok := strings.CutPrefix(name, prefix)
		if !ok {
			continue
		}
		offset, err := strconv.Atoi(rest)
		if rest == "" {
			offset, err = 0, nil
		}
		if n := base + offset; err == nil && n >= sigRTMin && n <= sigRTMax {
			return syscall.Signal(n), nil
		}
		return 0, bad
	}
	switch name { // second names that x/sys does not know
	case "CLD":
		name = "CHLD"
	case "IOT":
		name = "ABRT"
	case "POLL":
		name = "IO"
	}
	if sig := unix.SignalNum("SIG" + name); sig != 0 {
		return sig, nil
	}
	return 0, bad
}

// signalName is the inverse for messages: SIGKILL, or the number.
func signalName(sig syscall.Signal) string {
	if name := unix.SignalName(sig); name != "" {
		return name
	}
	return "signal " + strconv.Itoa(int(sig))
}
