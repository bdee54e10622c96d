package selinux

import (
	"strings"
	"testing"

	"github.com/dlclark/regexp2"
)

func TestLiteralPartsOfAPattern(t *testing.T) {
	for _, tc := range []struct {
		pattern               string
		shape                 shape
		prefix, suffix, inner string
	}{
		{pattern: `/a(/.*)?`, shape: below, prefix: "/a"},
		{pattern: `/a/.*`, shape: anything, prefix: "/a/"},
		{pattern: `/a/.+`, shape: something, prefix: "/a/"},
		{pattern: `/a/x[^/]*`, shape: name, prefix: "/a/x"},
		{pattern: `/a/x[^/]+`, shape: someName, prefix: "/a/x"},
		{pattern: `/a/b[.]`, shape: exactly, prefix: "/a/b."},
		{pattern: `/a/.*/lib/x?\.so`, prefix: "/a/", inner: "/lib/", suffix: ".so"},
		{pattern: `.*/x\.so`, suffix: "/x.so"},
		{pattern: `/usr/?`, prefix: "/usr/"},
		{pattern: `/usr/a|/b`, prefix: "/usr/"},
		{pattern: `/a?b/c`, prefix: "/", suffix: "b/c"},
		{pattern: `/opt/(?!x)y`, prefix: "/opt/"},
	} {
		m, err := compile(tc.pattern)
		if err != nil {
			t.Fatal(err)
		}
		if m.shape != tc.shape || m.prefix != tc.prefix || m.suffix != tc.suffix || m.inner != tc.inner {
			t.Errorf("%s: shape %d, prefix %q, suffix %q, inner %q; want %+v", tc.pattern, m.shape, m.prefix, m.suffix, m.inner, tc)
		}
	}
}

// FuzzMatcher holds the short cuts and Go's engine against the backtracking
// engine, which decides the whole pattern as it stands.
func FuzzMatcher(f *testing.F) {
	for _, p := range []string{`/a(/.*)?`, `/usr/lib/.*\.so(\.[^/]*)*`, `/[[:alpha:]]\d{2,3}|/x?`, `(?i)/A[^b]c`, `/a$`, `/x{2}{3}`, `/a(?:b|)+c`} {
		for _, s := range []string{"/a/b", "/usr/lib/x.so.1", "/a\n", "/\xff12", "/aXC"} {
			f.Add(p, s)
		}
	}
	f.Fuzz(func(t *testing.T, pattern, path string) {
		if len(pattern) > 60 || len(path) > 60 || strings.Contains(path, "\x00") {
			return
		}
		for i := range len(pattern) {
			if pattern[i] >= 0x80 {
				return
			}
		}
		tr, err := translate(pattern)
		if err != nil || tr.backtracking {
			return
		}
		m, err := compile(pattern)
		if err != nil || m.backtracking != nil {
			return
		}
		whole, err := regexp2.Compile(`\A`+tr.text+`\Z`, regexp2.Singleline)
		if err != nil {
			t.Fatalf("pattern %q is %q, which regexp2 refuses: %v", pattern, tr.text, err)
		}
		whole.MatchTimeout = matchTimeout
		s := subject{path: path}
		want, err := whole.MatchString(s.text())
		if err != nil {
			return
		}
		if st := stem(pattern); !strings.HasPrefix(path, st) {
			want = false
		}
		got := false
		if strings.HasPrefix(path, m.prefix) {
			if got, err = m.matches(&s); err != nil {
				t.Fatal(err)
			}
		}
		if got != want {
			t.Errorf("pattern %q (%s, prefix %q) on %q: %v, the backtracking engine says %v", pattern, tr.text, m.prefix, path, got, want)
		}
	})
}
