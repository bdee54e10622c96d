package composefs

import (
	"bytes"
	"flag"
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/kedge-os/kedge/internal/lab"
)

// oracleRoot returns where hack/lab/mkcomposefs.sh keeps sid's programs.
var oracleRoot = sync.OnceValues(func() (string, error) {
	out, err := exec.Command("../../hack/lab/mkcomposefs.sh", "--root").Output()
	return strings.TrimSpace(string(out)), err
})

// oracle returns a command that runs one of sid's programs.
func oracle(t testing.TB, program string, args ...string) *exec.Cmd {
	t.Helper()
	lab.Need(t, "mmdebstrap")
	root, err := oracleRoot()
	if err != nil {
		lab.Skip(t, "hack/lab/mkcomposefs.sh cannot unpack %s of Debian sid: %v", program, err)
	}
	libs, _ := filepath.Glob(root + "/usr/lib/*/libcomposefs.so.1")
	loader, _ := filepath.Glob(root + "/usr/lib*/ld-linux*.so.*")
	if len(libs) == 0 || len(loader) == 0 {
		t.Fatalf("%s has no libcomposefs or no dynamic loader", root)
	}
	return exec.Command(loader[0], append([]string{"--library-path", filepath.Dir(libs[0]), root + "/usr/bin/" + program}, args...)...)
}

func mkcomposefs(t testing.TB, dump []byte, args ...string) ([]byte, error) {
	t.Helper()
	cmd := oracle(t, "mkcomposefs", append(args, "--from-file", "-", "-")...)
	cmd.Stdin = bytes.NewReader(dump)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, stderr.String())
	}
	return out, err
}

// formats are the formats that mkcomposefs writes, with the arguments for each.
var formats = []struct {
	name string
	o    ImageOptions
	args []string
}{
	{"default", Default, nil},
	{"V1", V1, []string{"--min-version=1"}},
	{"V0", V0, []string{"--max-version=0"}},
}

// sameAsOracle writes the tree of a dump in all formats and compares it with
// what mkcomposefs writes. It reports whether mkcomposefs takes the dump.
func sameAsOracle(t testing.TB, dump []byte) bool {
	t.Helper()
	tree, readErr := ReadDump(bytes.NewReader(dump))
	for _, f := range formats {
		if f.name == "V0" && (readErr != nil || !hasWhiteouts(tree)) {
			continue // the same as default
		}
		want, oracleErr := mkcomposefs(t, dump, f.args...)
		var got bytes.Buffer
		err := readErr
		if err == nil {
			_, err = WriteImage(&got, tree, f.o)
		}
		switch {
		case oracleErr != nil && err != nil:
			return false
		case oracleErr != nil && strings.Contains(oracleErr.Error(), "out of range") && replacesOwn(tree):
			return false
		case oracleErr != nil:
			t.Errorf("%s: mkcomposefs refuses what we write: %v", f.name, oracleErr)
			return false
		case err != nil:
			t.Errorf("%s: mkcomposefs writes what we refuse: %v", f.name, err)
			return false
		case !bytes.Equal(got.Bytes(), want):
			t.Errorf("%s: %s", f.name, firstDifference(got.Bytes(), want))
			return true
		}
	}
	return true
}

func hasWhiteouts(t *Tree) bool {
	found := false
	_ = t.Walk(func(_ string, e Dirent) error {
		found = found || e.Inode.isWhiteout()
		return nil
	})
	return found
}

// replacesOwn reports whether the tree has an inode with an xattr of its own
// that gives way to one that composefs sets. mkcomposefs then loses count of
// the inode's xattrs and may take them for too long.
func replacesOwn(t *Tree) bool {
	found := false
	_ = t.Walk(func(_ string, e Dirent) error {
		n := e.Inode
		has := func(names ...string) bool {
			return slices.ContainsFunc(names, func(name string) bool { _, ok := n.Xattrs.Get(name); return ok })
		}
		holds := slices.ContainsFunc(n.Entries, func(c Dirent) bool { return !c.Link && c.Inode.isWhiteout() })
		if n.isWhiteout() && has("trusted.overlay.whiteout", userWhiteout) ||
			holds && has("trusted.overlay.whiteouts", "trusted.overlay.opaque", userHolder, userOpaque) {
			found = true
		}
		return nil
	})
	return found
}

func firstDifference(got, want []byte) string {
	i := 0
	for i < len(got) && i < len(want) && got[i] == want[i] {
		i++
	}
	part := func(b []byte) []byte { return b[min(i, len(b)):min(i+32, len(b))] }
	return fmt.Sprintf("the image of %d bytes differs from mkcomposefs's of %d at byte %d (%#x): % x, want % x",
		len(got), len(want), i, i, part(got), part(want))
}

const oracleTrees = 2000

var firstSeed = flag.Uint64("seed", 0, "seed of the first random tree that is compared with mkcomposefs")

func TestOracleRandomTrees(t *testing.T) {
	if testing.Short() {
		t.Skip("runs mkcomposefs thousands of times")
	}
	oracle(t, "mkcomposefs")
	seeds := make(chan uint64)
	var wg sync.WaitGroup
	var mu sync.Mutex
	written := 0
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for seed := range seeds {
				var dump bytes.Buffer
				if err := WriteDump(&dump, randomTree(seed)); err != nil {
					t.Errorf("seed %d: %v", seed, err)
					continue
				}
				ok := sameAsOracle(seedT{t, seed}, dump.Bytes())
				mu.Lock()
				if ok {
					written++
				}
				mu.Unlock()
			}
		})
	}
	for seed := range uint64(oracleTrees * 21 / 20) {
		seeds <- *firstSeed + seed
	}
	close(seeds)
	wg.Wait()
	if written < oracleTrees {
		t.Errorf("%d random trees were written, want at least %d", written, oracleTrees)
	}
	t.Logf("%d random trees, byte for byte", written)
}

// seedT names the seed in each message.
type seedT struct {
	*testing.T
	seed uint64
}

func (s seedT) Errorf(format string, args ...any) {
	s.Helper()
	s.T.Errorf("seed %d: "+format, append([]any{s.seed}, args...)...)
}
