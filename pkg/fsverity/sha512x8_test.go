package fsverity

import (
	"bytes"
	"crypto/sha512"
	"testing"
)

// TestSeveralBlocks holds what hashes blocks together against crypto/sha512.
func TestSeveralBlocks(t *testing.T) {
	if !haveWide {
		t.Log("this machine has no AVX-512: one block at a time")
	}
	data := randomBytes(100 * verityBlock)
	for n := 1; n <= wide; n++ {
		for first := 0; first+n <= 100; first++ {
			blocks := data[first*verityBlock:][:n*verityBlock]
			want := []byte("before")
			for b := blocks; len(b) > 0; b = b[verityBlock:] {
				sum := sha512.Sum512(b[:verityBlock])
				want = append(want, sum[:]...)
			}
			if got := SHA512.appendSums([]byte("before"), blocks); !bytes.Equal(got, want) {
				t.Fatalf("%d blocks: %x, want %x", n, got, want)
			}
		}
	}
}
