package composefs

// index finds numbers by what they stand for, which stays where the owner has
// it: a hash table of 8 bytes a slot, of which up to three quarters are taken.
type index struct {
	slots []uint64 // hash in the upper half, number + 1 in the lower; or 0
	n     int
}

// find returns the number, among those that were added with a hash, for which is
// says yes.
func (x *index) find(hash uint32, is func(uint32) bool) (uint32, bool) {
	if x.n == 0 {
		return 0, false
	}
	mask := uint32(len(x.slots) - 1)
	for i := hash & mask; x.slots[i] != 0; i = (i + 1) & mask {
		if s := x.slots[i]; uint32(s>>32) == hash && is(uint32(s)-1) {
			return uint32(s) - 1, true
		}
	}
	return 0, false
}

// add adds a number that is not there.
func (x *index) add(hash, v uint32) {
	if 4*x.n >= 3*len(x.slots) {
		old := x.slots
		x.slots = make([]uint64, max(64, 2*len(old)))
		for _, s := range old {
			if s != 0 {
				x.put(s)
			}
		}
	}
	x.put(uint64(hash)<<32 | uint64(v+1))
	x.n++
}

func (x *index) put(slot uint64) {
	mask := uint32(len(x.slots) - 1)
	i := uint32(slot>>32) & mask
	for x.slots[i] != 0 {
		i = (i + 1) & mask
	}
	x.slots[i] = slot
}
