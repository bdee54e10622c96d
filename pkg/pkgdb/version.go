package pkgdb

import (
	"strings"
)

// CompareVersions orders two versions of packages as the package manager does:
// -1, 0 or 1.
func CompareVersions(kind Kind, a, b string) int {
	if kind == Dpkg {
		return compareDeb(a, b)
	}
	return compareEVR(a, b)
}

// compareEVR orders [EPOCH:]VERSION[-RELEASE] as rpm does.
func compareEVR(a, b string) int {
	ea, va, ra := splitEVR(a)
	eb, vb, rb := splitEVR(b)
	if c := rpmvercmp(ea, eb); c != 0 {
		return c
	}
	if c := rpmvercmp(va, vb); c != 0 {
		return c
	}
	return rpmvercmp(ra, rb)
}

func splitEVR(evr string) (epoch, version, release string) {
	epoch, version, ok := strings.Cut(evr, ":")
	if !ok || strings.Trim(epoch, "0123456789") != "" {
		epoch, version = "", evr
	}
	if epoch == "" {
		epoch = "0"
	}
	if i := strings.LastIndexByte(version, '-'); i >= 0 {
		version, release = version[:i], version[i+1:]
	}
	return epoch, version, release
}

// rpmvercmp is the order of RPM's versions and releases (rpm-version(7)): runs
// of digits and runs of letters are compared one by one, "~" comes before the
// end and "^" behind it; everything else only separates.
func rpmvercmp(a, b string) int {
	for {
		a, b = strings.TrimLeftFunc(a, separates), strings.TrimLeftFunc(b, separates)
		if ta, tb := strings.HasPrefix(a, "~"), strings.HasPrefix(b, "~"); ta || tb {
			if c := boolOrder(tb, ta); c != 0 {
				return c
			}
			a, b = a[1:], b[1:]
			continue
		}
		if ca, cb := strings.HasPrefix(a, "^"), strings.HasPrefix(b, "^"); ca || cb {
			switch {
			case a == "":
				return -1
			case b == "":
				return 1
			case ca != cb:
				return boolOrder(cb, ca)
			}
			a, b = a[1:], b[1:]
			continue
		}
		if a == "" || b == "" {
			return boolOrder(a != "", b != "")
		}
		kind := isDigit
		if !isDigit(a[0]) {
			kind = isLetter
		}
		var x, y string
		x, a = run(a, kind)
		y, b = run(b, kind)
		switch {
		case y == "" && isDigit(x[0]):
			return 1
		case y == "":
			return -1
		}
		c := strings.Compare(x, y)
		if isDigit(x[0]) {
			c = compareNumbers(x, y)
		}
		if c != 0 {
			return c
		}
	}
}

// boolOrder is 1 where only a is true, -1 where only b is.
func boolOrder(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

func separates(r rune) bool {
	return r != '~' && r != '^' && (r > 0x7f || !isDigit(byte(r)) && !isLetter(byte(r)))
}

func isDigit(c byte) bool  { return c >= '0' && c <= '9' }
func isLetter(c byte) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' }

// run cuts what is of one kind off the front of s.
func run(s string, kind func(byte) bool) (head, rest string) {
	i := 0
	for i < len(s) && kind(s[i]) {
		i++
	}
	return s[:i], s[i:]
}

// compareNumbers compares runs of digits of any length.
func compareNumbers(a, b string) int {
	a, b = strings.TrimLeft(a, "0"), strings.TrimLeft(b, "0")
	if len(a) != len(b) {
		return boolOrder(len(a) > len(b), len(a) < len(b))
	}
	return strings.Compare(a, b)
}

// compareDeb orders [EPOCH:]UPSTREAM[-REVISION] as dpkg does (deb-version(7)).
func compareDeb(a, b string) int {
	ea, ua, ra := splitDeb(a)
	eb, ub, rb := splitDeb(b)
	if c := compareNumbers(ea, eb); c != 0 {
		return c
	}
	if c := compareDebPart(ua, ub); c != 0 {
		return c
	}
	return compareDebPart(ra, rb)
}

func splitDeb(v string) (epoch, upstream, revision string) {
	epoch, upstream, ok := strings.Cut(v, ":")
	if !ok {
		epoch, upstream = "", v
	}
	if i := strings.LastIndexByte(upstream, '-'); i >= 0 {
		upstream, revision = upstream[:i], upstream[i+1:]
	}
	return epoch, upstream, revision
}

// compareDebPart compares what is no digit and what is, in turns.
func compareDebPart(a, b string) int {
	for a != "" || b != "" {
		var x, y string
		x, a = run(a, notDigit)
		y, b = run(b, notDigit)
		for i := range max(len(x), len(y)) {
			if c := debOrder(x, i) - debOrder(y, i); c != 0 {
				return boolOrder(c > 0, c < 0)
			}
		}
		x, a = run(a, isDigit)
		y, b = run(b, isDigit)
		if c := compareNumbers(x, y); c != 0 {
			return c
		}
	}
	return 0
}

func notDigit(c byte) bool { return !isDigit(c) }

// debOrder is the place of a character: "~", the end, letters, all others.
func debOrder(s string, i int) int {
	switch {
	case i >= len(s):
		return 0
	case s[i] == '~':
		return -1
	case isLetter(s[i]):
		return int(s[i])
	}
	return int(s[i]) + 256
}
