package pkgdb

import (
	"math/rand/v2"
	"os/exec"
	"testing"

	"github.com/kedge-os/kedge/internal/lab"
)

func TestCompareVersions(t *testing.T) {
	for _, tc := range []struct {
		kind Kind
		a, b string
		want int
	}{
		{RPM, "1.0-1", "1.0-1", 0},
		{RPM, "1.0-1", "1.0-2", -1},
		{RPM, "1:0.9-1", "1.0-1", 1},
		{RPM, "0:1.0-1", "1.0-1", 0},
		{RPM, "1.0~rc1-1", "1.0-1", -1},
		{RPM, "1.0^git1-1", "1.0-1", 1},
		{RPM, "1.0^git1-1", "1.0.1-1", -1},
		{RPM, "10-1", "9-1", 1},
		{RPM, "1.a-1", "1.1-1", -1},
		{RPM, "5.14.0-70.el9", "5.14.0-162.el9", -1},
		{RPM, "4294967297:1-1", "2:1-1", 1},
		{Dpkg, "1.0", "1.0-0", 0},
		{Dpkg, "1.0-1", "1.0-1+b1", -1},
		{Dpkg, "1.0~rc1-1", "1.0-1", -1},
		{Dpkg, "1:0.9", "1.0", 1},
		{Dpkg, "2.41-12", "2.41-9", 1},
		{Dpkg, "1.0a", "1.0+", -1},
	} {
		if got := CompareVersions(tc.kind, tc.a, tc.b); got != tc.want {
			t.Errorf("%s: %s against %s is %d, want %d", tc.kind, tc.a, tc.b, got, tc.want)
		}
		if got := CompareVersions(tc.kind, tc.b, tc.a); got != -tc.want {
			t.Errorf("%s: %s against %s is %d, want %d", tc.kind, tc.b, tc.a, got, -tc.want)
		}
	}
}

// versions returns pairs of which most differ in little, made of letters.
func versions(n int, letters string) [][2]string {
	r := rand.New(rand.NewPCG(1, 2))
	word := func(max int) string {
		b := make([]byte, 1+r.IntN(max))
		for i := range b {
			b[i] = letters[r.IntN(len(letters))]
		}
		return string(b)
	}
	one := func() string {
		v := "1" + word(6)
		if r.IntN(4) == 0 {
			v = string('0'+byte(r.IntN(3))) + ":" + v
		}
		return v + "-" + word(4)
	}
	var out [][2]string
	for range n {
		a := one()
		b := []byte(a)
		if r.IntN(3) == 0 {
			b = []byte(one())
		} else {
			b[len(b)-1-r.IntN(3)] = letters[r.IntN(len(letters))]
		}
		out = append(out, [2]string{a, string(b)})
	}
	return out
}

// TestVersionsLikeDpkg holds the order against dpkg's own.
func TestVersionsLikeDpkg(t *testing.T) {
	lab.Need(t, "dpkg")
	n := 1500
	if testing.Short() {
		n = 150
	}
	for _, v := range versions(n, "0019abzZ.+~") {
		want := 0
		for c, word := range map[int]string{-1: "lt", 1: "gt"} {
			if exec.Command("dpkg", "--compare-versions", v[0], word, v[1]).Run() == nil {
				want = c
			}
		}
		if got := CompareVersions(Dpkg, v[0], v[1]); got != want {
			t.Errorf("%s against %s is %d, dpkg says %d", v[0], v[1], got, want)
		}
	}
}

func FuzzCompareVersions(f *testing.F) {
	f.Add("1:1.0~rc1-1", "1.0^1-2", "2")
	f.Add("", "~", "^")
	f.Fuzz(func(t *testing.T, a, b, c string) {
		for _, kind := range []Kind{RPM, Dpkg} {
			if CompareVersions(kind, a, b) != -CompareVersions(kind, b, a) {
				t.Errorf("%s: %q and %q are not the same both ways", kind, a, b)
			}
			if CompareVersions(kind, a, a) != 0 {
				t.Errorf("%s: %q is not itself", kind, a)
			}
		}
	})
}
