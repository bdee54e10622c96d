package main

import "testing"

func TestPace(t *testing.T) {
	for _, tt := range []struct {
		megabytes uint64
		want      int
	}{{0, 25}, {10, 100}, {48, 100}, {64, 50}, {90, 25}, {96, 25}, {1000, 25}} {
		if got := pace(tt.megabytes << 20); got != tt.want {
			t.Errorf("with %d MiB in use the heap may grow by %d %%, want %d", tt.megabytes, got, tt.want)
		}
	}
}
