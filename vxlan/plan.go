package vxlan

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"
)

// verb is what an op does to its object.
type verb uint8

const (
	verbAdd verb = iota // it is not there
	verbSet             // it is there with another value
	verbDel
)

// op is one change of the kernel.
type op struct {
	verb  verb
	key   key
	value any // to be; nil with verbDel
	old   any // what is there; nil with verbAdd
}

// end names a link.
type end struct{ ns, link string }

// plan returns the changes that turn have into want, in an order in which each
// is possible: what stands in the way is removed first, then links are made,
// then what hangs on them, then the rest is removed. A route or entry that
// changes is replaced in one step, so that no packet meets a gap.
func plan(have, want state) []op {
	var ops []op
	dead := deadLinks(have, want, func(k key) { ops = append(ops, op{verbDel, k, nil, have[k]}) })
	for k, value := range want {
		old, there := have[k]
		switch {
		case !there || endsWith(k, old, dead):
			if k.kind == kindLink && value.(link).follows() {
				continue // made together with its owner
			}
			ops = append(ops, op{verbAdd, k, value, nil})
		case k.kind == kindLink:
			if w, h := value.(link), old.(link); w.mtu != h.mtu || w.up != h.up {
				ops = append(ops, op{verbSet, k, w, h})
			}
		case value != old:
			ops = append(ops, op{verbSet, k, value, old})
		}
	}
	for k, old := range have {
		ends := k.kind != kindReturn && endsWith(k, old, dead) // a table outlives the device that it hangs on
		if _, wanted := want[k]; wanted || k.kind == kindLink || k.kind == kindSysctl || ends {
			continue
		}
		if _, kept := want[key{router: k.router, kind: kindSpace, ns: k.router}]; !kept && k.kind != kindSpace && k.ns == k.router && k.ns != "" {
			continue // ends with its namespace
		}
		ops = append(ops, op{verbDel, k, nil, old})
	}
	slices.SortFunc(ops, func(a, b op) int { return cmp.Or(a.phase()-b.phase(), a.key.compare(b.key)) })
	return ops
}

// deadLinks finds the links that are not wanted, or not so, with the other ends
// of their pairs, and reports one end of each pair to remove.
func deadLinks(have, want state, remove func(key)) map[end]bool {
	dead := map[end]bool{}
	var keys []key
	for k, value := range have {
		if k.kind != kindLink {
			continue
		}
		h := value.(link)
		w, wanted := want[k].(link)
		if wanted && w.alike(h) || !wanted && !h.ours() {
			continue
		}
		keys = append(keys, k)
	}
	owned := func(k key) int {
		if have[k].(link).owner {
			return 0
		}
		return 1
	}
	slices.SortFunc(keys, func(a, b key) int { return cmp.Or(owned(a)-owned(b), a.compare(b)) })
	for _, k := range keys {
		if dead[end{k.ns, k.link}] {
			continue
		}
		dead[end{k.ns, k.link}] = true
		if h := have[k].(link); h.peer != "" {
			dead[end{h.peerNS, h.peer}] = true
		}
		remove(k)
	}
	return dead
}

// endsWith reports whether the object goes when the dead links go.
func endsWith(k key, value any, dead map[end]bool) bool {
	if r, ok := value.(route); ok {
		return dead[end{k.ns, r.link}]
	}
	return dead[end{k.ns, k.link}]
}

// follows reports whether the link is made by making another: its pair's owner,
// or, of the loopback, its namespace.
func (l link) follows() bool { return l.kind == "loopback" || l.kind == "veth" && !l.owner }

// ours reports whether the link is of a kind that is made here. Others appear by
// themselves in each new namespace (tunl0, sit0).
func (l link) ours() bool { return l.kind == "vxlan" || l.kind == "veth" }

// alike reports whether have differs from the wanted link in nothing but what
// can be changed while it is in use. A hardware address is not: changing it
// removes the permanent neighbours (kernel net/core/neighbour.c, neigh_changeaddr).
func (l link) alike(have link) bool {
	have.mtu, have.up, have.peerMAC = l.mtu, l.up, l.peerMAC
	if l.mac == (MAC{}) {
		have.mac = MAC{}
	}
	return l == have
}

// phase orders ops.
func (o op) phase() int {
	const remove = 100
	switch {
	case o.verb != verbDel && o.key.kind == kindSysctl && o.key.link == "":
		return int(kindEgress) // before any link is made
	case o.verb != verbDel && o.key.kind == kindLink:
		return int(kindLink) + 1 // after those that stood in the way
	case o.verb != verbDel && o.key.kind > kindLink:
		return int(o.key.kind) + 1
	case o.verb != verbDel, o.key.kind == kindLink:
		return int(o.key.kind)
	default:
		return remove - int(o.key.kind)
	}
}

// String is the op as one would type it.
func (o op) String() string {
	k := o.key
	switch k.kind {
	case kindSpace:
		return fmt.Sprintf("ip netns %s %s", o.pick("add", "add", "delete"), filepath.Base(k.ns))
	case kindEgress:
		if o.verb == verbDel {
			return "nft delete table ip " + egressTable
		}
		return fmt.Sprintf("nft %s table ip %s # data-path ports %s", o.pick("add", "replace", ""), egressTable, o.value)
	case kindSysctl:
		return fmt.Sprintf("%ssysctl -w %s=%s", in("ip netns exec %s ", k.ns), k.name, o.value)
	case kindLink:
		return o.linkString()
	case kindAddr:
		return fmt.Sprintf("ip %saddr %s %s dev %s", in("-n %s ", k.ns), o.pick("add", "replace", "del"), k.dst, k.link)
	case kindFDB:
		return fmt.Sprintf("bridge %sfdb %s %s dev %s dst %s", in("-n %s ", k.ns),
			o.pick("add", "replace", "del"), k.mac, k.link, o.either())
	case kindNeigh:
		return fmt.Sprintf("ip %sneigh %s %s lladdr %s dev %s nud permanent", in("-n %s ", k.ns),
			o.pick("add", "replace", "del"), k.dst.Addr(), o.either(), k.link)
	case kindRule:
		return fmt.Sprintf("ip %srule %s pref %d not fwmark 0 lookup %d", in("-n %s ", k.ns), o.pick("add", "replace", "del"), returnRoutes, returnRoutes)
	case kindReturn:
		if o.verb == verbDel {
			return fmt.Sprintf("%snft delete table ip %s # and netdev", in("ip netns exec %s ", k.ns), returnTable)
		}
		return fmt.Sprintf("%snft %s table ip %s # and netdev; subnet, origins: %s", in("ip netns exec %s ", k.ns), o.pick("add", "replace", ""), returnTable, o.value)
	default:
		return fmt.Sprintf("ip %sroute %s %s", in("-n %s ", k.ns), o.pick("add", "replace", "del"),
			o.either().(route).text(k))
	}
}

func (o op) linkString() string {
	k, l := o.key, o.either().(link)
	prefix := "ip " + in("-n %s ", k.ns) + "link "
	switch {
	case o.verb == verbDel:
		return prefix + "del " + k.link
	case o.verb == verbSet:
		return fmt.Sprintf("%sset %s mtu %d up", prefix, k.link, l.mtu)
	case l.kind == "vxlan":
		return fmt.Sprintf("ip link add %s netns %s address %s mtu %d type vxlan id %d local %s dstport %d nolearning",
			k.link, filepath.Base(k.ns), l.mac, l.mtu, l.vni, l.local, l.port)
	default:
		return fmt.Sprintf("%sadd %s mtu %d type veth peer name %s netns %s",
			prefix, k.link, l.mtu, l.peer, filepath.Base(l.peerNS))
	}
}

func (r route) text(k key) string {
	text := k.dst.String()
	if k.dst == all {
		text = "default"
	}
	switch {
	case r.unreachable:
		text = "unreachable " + text
	case r.via.Is6():
		text += fmt.Sprintf(" via inet6 %s dev %s onlink", r.via, r.link)
	case r.via.IsValid():
		text += fmt.Sprintf(" via %s dev %s onlink", r.via, r.link)
	default:
		text += fmt.Sprintf(" dev %s scope link", r.link)
	}
	if k.table != 0 {
		text += fmt.Sprintf(" table %d", k.table)
	}
	if k.metric != 0 {
		text += fmt.Sprintf(" metric %d", k.metric)
	}
	return text
}

func (o op) pick(add, set, del string) string { return [...]string{add, set, del}[o.verb] }

// either is the value to be or, of an op that removes, the one that was.
func (o op) either() any {
	if o.verb == verbDel {
		return o.old
	}
	return o.value
}

// in formats the name of a namespace, and nothing for the host's.
func in(format, ns string) string {
	if ns == "" {
		return ""
	}
	return fmt.Sprintf(format, filepath.Base(ns))
}
