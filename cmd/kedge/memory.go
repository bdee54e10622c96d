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
const (
	heapFree    = 96 << 20
	heapPercent = 25
)

// limitGarbage keeps the collector's pace so from here on.
func limitGarbage() {
	// An object that nobody refers to is finalised once per collection.
	var each func(*[16]byte)
	each = func(mark *[16]byte) {
		debug.SetGCPercent(pace(heapInUse()))
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

// heapInUse returns the bytes that the last collection left.
func heapInUse() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(s)
	if s[0].Value.Kind() != metrics.KindUint64 {
		return 0
	}
	return s[0].Value.Uint64()
}
