package main

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

// Go lets the heap grow to twice of what is in use. That is fine while an
// operation streams layers, with little in use and much garbage, and too much
// when the tree of a large image is there: kedge runs beside what the host is
// for. So a heap may double up to heapFree bytes, and grows by a quarter above.
//
// What a collection leaves empty goes back to the system slowly, unless the
// runtime is about to take more than its limit: then at once. So the limit
// follows the heap, heapBeside above what that may grow to: for the holes that
// small objects leave, for stacks and for what the runtime needs itself.
const (
	heapFree    = 96 << 20
	heapPercent = 25
	heapBeside  = 20 << 20
)

// limitGarbage keeps the collector's pace so from here on.
func limitGarbage() {
	// An object that nobody refers to is finalised once per collection.
	var each func(*[16]byte)
	each = func(mark *[16]byte) {
		inUse := heapInUse()
		debug.SetGCPercent(pace(inUse))
		debug.SetMemoryLimit(limit(inUse))
		runtime.SetFinalizer(mark, each)
	}
	runtime.SetFinalizer(new([16]byte), each)
}

// pace returns by how many per cent the heap may grow.
func pace(inUse uint64) int {
	if inUse == 0 || inUse >= heapFree {
		return heapPercent
	}
	return max(heapPercent, min(100, int((heapFree-inUse)*100/inUse)))
}

// limit returns how many bytes the runtime may take before it gives back what it
// does not use.
func limit(inUse uint64) int64 {
	return int64(max(heapFree, inUse+inUse*heapPercent/100)) + heapBeside
}

// heapInUse returns the bytes that the last collection left.
func heapInUse() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(s)
	if s[0].Value.Kind() != metrics.KindUint64 {
		return 0
	}
	return s[0].Value.Uint64()
}
