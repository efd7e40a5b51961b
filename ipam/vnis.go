package ipam

// The VXLAN network identifiers that are given: 24 bits (RFC 7348 §5), the low
// ones left to others on the same underlay.
const (
	MinVNI uint32 = 4096
	MaxVNI uint32 = 1<<24 - 1
)

// VNIs gives out VXLAN network identifiers, each at most once, in serial order
// like Addresses. The zero value has none in use.
type VNIs struct {
	taken  map[uint32]struct{}
	cursor uint32
	told   bool
}

// After makes Next search from vni on: the one given last, as the caller has
// recorded it. Without it the search begins after the highest one in use.
func (v *VNIs) After(vni uint32) {
	if vni >= MinVNI && vni <= MaxVNI {
		v.cursor, v.told = vni, true
	}
}

// Take records vni as in use: ErrTaken when it already is, ErrInvalid when it
// is out of range.
func (v *VNIs) Take(vni uint32) error {
	if vni < MinVNI || vni > MaxVNI {
		return errorf(ErrInvalid, "VNI %d is out of range: want %d to %d", vni, MinVNI, MaxVNI)
	}
	if _, ok := v.taken[vni]; ok {
		return errorf(ErrTaken, "VNI %d is already in use", vni)
	}
	v.mark(vni)
	if !v.told {
		v.cursor = max(v.cursor, vni)
	}
	return nil
}

func (v *VNIs) mark(vni uint32) {
	if v.taken == nil {
		v.taken = make(map[uint32]struct{})
	}
	v.taken[vni] = struct{}{}
}

// Next gives a free VNI and records it as in use, or fails with ErrExhausted.
func (v *VNIs) Next() (uint32, error) {
	vni := v.cursor
	for range len(v.taken) + 1 {
		if vni++; vni < MinVNI || vni > MaxVNI {
			vni = MinVNI
		}
		if _, ok := v.taken[vni]; !ok {
			v.mark(vni)
			v.cursor, v.told = vni, true
			return vni, nil
		}
	}
	return 0, errorf(ErrExhausted, "no free VNI: all %d are in use", len(v.taken))
}
