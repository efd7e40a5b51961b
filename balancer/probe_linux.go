package balancer

import (
	"fmt"
	"os"
	"path/filepath"

	"netd/internal/netns"
)

// Probe chooses the renderer for this kernel and says why, for the status: IPVS
// where a service can be made in a namespace of its own, else nftables.
func Probe() (Kind, string) {
	if err := familyExists(); err != nil {
		return NFTables, fmt.Sprintf("the kernel has no ip_vs (%v)", err)
	}
	if err := tryIPVS(); err != nil {
		return NFTables, fmt.Sprintf("the kernel's ip_vs does not work: %v", err)
	}
	return IPVS, "the kernel has ip_vs and its scheduler " + scheduler
}

func tryIPVS() (err error) {
	dir, err := os.MkdirTemp("", "netd-probe-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "ns")
	if err := netns.Create(path); err != nil {
		return err
	}
	defer func() {
		if gone := netns.Delete(path); err == nil {
			err = gone
		}
	}()
	return netns.Do(path, func() error {
		h, err := openIPVS()
		if err != nil {
			return err
		}
		defer h.Close()
		return h.selfTest()
	})
}
