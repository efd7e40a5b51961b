package main

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"netd"
)

// An address may come with a port or without, IPv6 in brackets or not.
func TestSplitPort(t *testing.T) {
	for given, want := range map[string]struct {
		host string
		port uint16
		err  string
	}{
		"":                    {"", 0, ""},
		"192.0.2.1":           {"192.0.2.1", 0, ""},
		"192.0.2.1:2377":      {"192.0.2.1", 2377, ""},
		"eth0":                {"eth0", 0, ""},
		"eth0:1":              {"eth0", 1, ""},
		":2377":               {"", 2377, ""},
		"2001:db8::1":         {"2001:db8::1", 0, ""},
		"[2001:db8::1]":       {"2001:db8::1", 0, ""},
		"[2001:db8::1]:65535": {"2001:db8::1", 65535, ""},
		"192.0.2.1:":          {"", 0, "the port must be 1 to 65535"},
		"192.0.2.1:0":         {"", 0, "the port must be 1 to 65535"},
		"192.0.2.1:65536":     {"", 0, "the port must be 1 to 65535"},
		"192.0.2.1:http":      {"", 0, "the port must be 1 to 65535"},
		"a:b:c":               {"", 0, "want HOST or HOST:PORT"},
		"[2001:db8::1":        {"", 0, "want HOST or HOST:PORT"},
	} {
		host, port, err := splitPort(given)
		checkError(t, given, err, want.err)
		if host != want.host || port != want.port {
			t.Errorf("%q: got %q %d, want %q %d", given, host, port, want.host, want.port)
		}
	}
}

// checkError wants no error for "", else an ErrInvalid with the text.
func checkError(t *testing.T, what string, err error, want string) {
	t.Helper()
	if want == "" && err == nil {
		return
	}
	if want == "" || err == nil || !strings.Contains(err.Error(), want) || !errors.Is(err, netd.ErrInvalid) {
		t.Errorf("%q: got %v, want an ErrInvalid with %q", what, err, want)
	}
}

// What is left out of a listen address is 0.0.0.0 and 2377.
func TestListenAddress(t *testing.T) {
	for given, want := range map[string]struct {
		addr string
		port uint16
		err  string
	}{
		"":                  {"0.0.0.0:2377", 2377, ""},
		":4000":             {"0.0.0.0:4000", 4000, ""},
		"0.0.0.0:2377":      {"0.0.0.0:2377", 2377, ""},
		"192.0.2.1":         {"192.0.2.1:2377", 2377, ""},
		"[::]:2377":         {"[::]:2377", 2377, ""},
		"2001:db8::1":       {"[2001:db8::1]:2377", 2377, ""},
		"nosuchinterface:1": {"", 0, "neither an IP address nor a network interface"},
		"0.0.0.0:99999":     {"", 0, "the port must be"},
	} {
		addr, port, err := listenAddress(given)
		checkError(t, given, err, want.err)
		if addr != want.addr || port != want.port {
			t.Errorf("%q: got %q %d, want %q %d", given, addr, port, want.addr, want.port)
		}
	}
}

// An advertised address is an address that others can send to, in its short form.
func TestAdvertised(t *testing.T) {
	for given, want := range map[string]struct {
		addr string
		port uint16
		err  string
	}{
		"192.0.2.1":        {"192.0.2.1", 0, ""},
		"192.0.2.1:4000":   {"192.0.2.1", 4000, ""},
		"::ffff:192.0.2.1": {"192.0.2.1", 0, ""},
		"2001:db8::1":      {"2001:db8::1", 0, ""},
		"0.0.0.0":          {"", 0, "must be a non-zero IP address"},
		"0.0.0.0:2377":     {"", 0, "must be a non-zero IP address"},
		"[::]:2377":        {"", 0, "must be a non-zero IP address"},
		"nosuchinterface":  {"", 0, "neither an IP address nor a network interface of this host"},
		"example.com:2377": {"", 0, "neither an IP address nor a network interface of this host"},
		"lo":               {"", 0, "interface lo has 0 usable addresses"},
		"192.0.2.1:-1":     {"", 0, "the port must be"},
	} {
		addr, port, err := advertised(given)
		checkError(t, given, err, want.err)
		if want.err == "" && (addr != netip.MustParseAddr(want.addr) || port != want.port) {
			t.Errorf("%q: got %s %d, want %s %d", given, addr, port, want.addr, want.port)
		}
	}
}

// A manager's address needs a host; the port is 2377 unless given, and a name is
// left to be resolved.
func TestManagerAddress(t *testing.T) {
	for given, want := range map[string]struct{ addr, err string }{
		"192.0.2.1":        {"192.0.2.1:2377", ""},
		"192.0.2.1:4000":   {"192.0.2.1:4000", ""},
		"manager1":         {"manager1:2377", ""},
		"2001:db8::1":      {"[2001:db8::1]:2377", ""},
		"[2001:db8::1]:80": {"[2001:db8::1]:80", ""},
		"":                 {"", "want HOST or HOST:PORT"},
		":2377":            {"", "want HOST or HOST:PORT"},
		"192.0.2.1:0":      {"", "want HOST or HOST:PORT"},
	} {
		addr, err := managerAddress(given)
		checkError(t, given, err, want.err)
		if addr != want.addr {
			t.Errorf("%q: got %q, want %q", given, addr, want.addr)
		}
	}
}

// Only an address of this host can be advertised; the refusal names those there are.
func TestCheckOwn(t *testing.T) {
	if err := checkOwn("advertise", netip.MustParseAddr("127.0.0.1")); err != nil {
		t.Error(err)
	}
	checkError(t, "foreign", checkOwn("advertise", netip.MustParseAddr("192.0.2.77")), "advertise address 192.0.2.77 is not an address of this host, which has ")
}

// The data path's address is the advertised one unless it is given.
func TestVTEP(t *testing.T) {
	advertise := netip.MustParseAddr("192.0.2.1")
	for given, want := range map[string]string{"": "192.0.2.1", "192.0.2.9": "192.0.2.9", "192.0.2.9:1": "192.0.2.9"} {
		if got, err := vtep(given, advertise); err != nil || got != netip.MustParseAddr(want) {
			t.Errorf("%q: got %s, %v, want %s", given, got, err, want)
		}
	}
	_, err := vtep("0.0.0.0", advertise)
	checkError(t, "0.0.0.0", err, "non-zero")
}
