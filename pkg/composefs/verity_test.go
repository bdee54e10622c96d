package composefs

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kedge-os/kedge/pkg/fsverity"
)

func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

// digestOf returns the digest of a file with that content.
func digestOf(alg Algorithm, data []byte) Digest {
	v := fsverity.New(alg)
	_, _ = v.Write(data)
	return v.Sum()
}

// TestVerityOracle compares with the program of composefs, but not for the
// empty file: the kernel gives that a root of zeros, composefs-info the hash of
// a block of zeros. No image refers to an empty object.
func TestVerityOracle(t *testing.T) {
	for _, size := range []int{1, 11, 4096, 4097, 128 * 4096, 128*4096 + 1, 5_000_000} {
		name := filepath.Join(t.TempDir(), "file")
		data := randomBytes(size)
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := oracle(t, "composefs-info", "measure-file", name).Output()
		if err != nil {
			t.Fatalf("composefs-info measure-file: %v", err)
		}
		want := strings.TrimSpace(string(out))
		if got, err := fsverity.Of(t.Context(), bytes.NewReader(data), int64(size), SHA256); err != nil || got.String() != want {
			t.Errorf("%d bytes: %s and %v, composefs-info says %s", size, got, err, want)
		}
	}
}
