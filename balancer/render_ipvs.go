package balancer

import (
	"golang.org/x/sys/unix"
)

// setMarks is the IPVS kind's map of all VIPs to their marks.
const setMarks = "marks"

// scheduler is IPVS's round robin.
const scheduler = "rr"

// ipvsSettings (kernel Documentation/networking/ipvs-sysctl.rst).
func ipvsSettings() map[string]string {
	return map[string]string{
		vsConntrack:                             "0",
		"net/ipv4/vs/expire_nodest_conn":        "1", // a dead backend's connections are reset, not swallowed until they time out
		"net/ipv4/vs/conn_reuse_mode":           "1", // a reused client port is balanced anew, not to a drained backend
		"net/ipv4/vs/expire_quiescent_template": "1",
		"net/ipv4/vs/snat_reroute":              "0", // no second route lookup for each reply: there is no routing by source
	}
}

// vsConntrack keeps IPVS from conntrack. A kernel built without
// CONFIG_IP_VS_NFCT does not have the setting, and needs none.
const vsConntrack = "net/ipv4/vs/conntrack"

// renderIPVS: one lookup marks the packets of all VIPs, and for each mark there
// is one IPVS service, so that every port and protocol passes. IPVS translates
// the destination (masquerading, the source stays), and the replies where they
// cross the same router. Nothing here uses conntrack, so its hooks are not even
// registered in the router.
func renderIPVS(want *state, r Router) {
	want.timeouts = timeouts{tcp: idleTCP, udp: idleUDP}
	marks := set{name: setMarks, shape: shape{key: [2]field{fieldAddr}, data: fieldMark}}
	for _, s := range r.Services {
		marks.elems = append(marks.elems, elem{key: [2]uint32{word(s.VIP)}, data: word(s.VIP)})
		v := virtual{key: virtualKey{mark: word(s.VIP), family: unix.AF_INET}, scheduler: scheduler}
		for _, b := range s.Backends {
			d := dest{addr: b.Addr}
			if b.State == Ready {
				d.weight = 1
			}
			v.dests = append(v.dests, d)
		}
		want.virtuals = append(want.virtuals, v)
	}
	want.table = table{
		exists: true,
		sets:   append(hairpinSets(r), marks),
		chains: []chain{
			{"alias", base{kind: "filter", hook: unix.NF_INET_PRE_ROUTING, priority: priorityRaw}, []rule{
				newRule("ip daddr @alias ip daddr set ip saddr", "the answer of a container to itself: back to it",
					loadAddr(offsetDst, reg), inSet(setAlias), loadAddr(offsetSrc, reg), setAddr(offsetDst)),
			}},
			{"mark", base{kind: "filter", hook: unix.NF_INET_PRE_ROUTING, priority: priorityMangle}, []rule{
				newRule("meta mark set ip daddr map @marks", "to the IPVS service of the VIP",
					loadAddr(offsetDst, reg), viaMap(setMarks), setMark()),
			}},
			{"hairpin", base{kind: "filter", hook: unix.NF_INET_POST_ROUTING, priority: prioritySrcNAT}, []rule{
				newRule("ip saddr set ip saddr . ip daddr map @self", "a container balanced to itself sees the alias",
					loadAddr(offsetSrc, reg), loadAddr(offsetDst, regNext), viaMap(setSelf), setAddr(offsetSrc)),
			}},
		},
	}
	sortTable(&want.table)
}

func decodeIPVS(have state) []Service {
	var services []Service
	for _, v := range have.virtuals {
		if v.key.mark == 0 {
			continue
		}
		s := Service{VIP: addr(v.key.mark)}
		for _, d := range v.dests {
			b := Backend{Addr: d.addr, State: Ready}
			if d.weight == 0 {
				b.State = Draining
			}
			s.Backends = append(s.Backends, b)
		}
		services = append(services, s)
	}
	return services
}
