//go:build linux

package nettest_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"netd/internal/nettest"
)

// The hosts of an underlay reach each other, by TCP and UDP, and see true sources.
func TestRootUnderlay(t *testing.T) {
	hosts := nettest.Underlay(t, 3)
	for i, ns := range hosts {
		nettest.Serve(t, ns, fmt.Sprintf("host%d", i+1), 8000)
	}
	for _, network := range []string{"tcp", "udp"} {
		nettest.Eventually(t, 5*time.Second, network, func() error {
			got, err := nettest.Ask(hosts[0], network, "", "10.99.0.3:8000")
			if err == nil && got != "host3 10.99.0.1" {
				err = errors.New("got " + got)
			}
			return err
		})
	}
}

// Routes and sysctls of the helpers make a namespace forward.
func TestRootForward(t *testing.T) {
	a, router, b := nettest.NS(t), nettest.NS(t), nettest.NS(t)
	nettest.Link(t, a, router, "10.1.0.2/24", "10.1.0.1/24")
	nettest.Link(t, b, router, "10.2.0.2/24", "10.2.0.1/24")
	nettest.Route(t, a, "0.0.0.0/0", "10.1.0.1", "eth0")
	nettest.Route(t, b, "0.0.0.0/0", "10.2.0.1", "eth0")
	nettest.Sysctl(t, router, "net.ipv4.ip_forward", "1")
	nettest.Serve(t, b, "b", 80)
	nettest.Eventually(t, 5*time.Second, "a reaches b", func() error {
		got, err := nettest.Ask(a, "tcp", "", "10.2.0.2:80")
		if err == nil && got != "b 10.1.0.2" {
			err = errors.New("got " + got)
		}
		return err
	})
}

// What this kernel has is found; what no kernel has is not.
func TestRootRequire(t *testing.T) {
	nettest.Require(t, "veth", "bridge", "vxlan", "nf_tables")
	t.Run("absent", func(t *testing.T) {
		defer func() {
			if !t.Skipped() && !t.Failed() {
				t.Error("a kind of link that cannot exist was found")
			}
		}()
		t.Setenv("NETD_TEST_STRICT", "")
		nettest.Require(t, "nonsense")
	})
}
