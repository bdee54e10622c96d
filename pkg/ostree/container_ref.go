package ostree

import (
	"fmt"
	"strconv"
	"strings"
)

// Refs under which ostree-ext keeps container images.
const (
	LayerRefPrefix     = "ostree/container/blob"
	ImageRefPrefix     = "ostree/container/image"
	BaseImageRefPrefix = "ostree/container/baseimage"
)

// LayerRef returns the ref of a layer's commit; digest is the blob's,
// "sha256:…".
func LayerRef(digest string) string { return LayerRefPrefix + "/" + EscapeRef(digest) }

// ImageRef returns the ref of an image's merge commit; the reference is
// ostree-ext's spelling of it, "docker://quay.io/a/b:t".
func ImageRef(reference string) string { return ImageRefPrefix + "/" + EscapeRef(reference) }

// EscapeRef turns any string into one that a ref may end in: ASCII letters,
// digits and "-" stay, "_" doubles, "/" stays between an ASCII letter or digit
// and more text, everything else is _HEX_ (ostree-ext, refescape.rs).
func EscapeRef(s string) string {
	var b strings.Builder
	alnum := false
	for i, c := range s {
		now := c < 0x80 && (c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z')
		switch {
		case now, c == '-':
			b.WriteRune(c)
		case c == '_':
			b.WriteString("__")
		case c == '/' && alnum && i+1 < len(s):
			b.WriteByte('/')
		default:
			fmt.Fprintf(&b, "_%02X_", c)
		}
		alnum = now
	}
	return b.String()
}

// UnescapeRef reverses EscapeRef; it fails on what EscapeRef never writes.
func UnescapeRef(s string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c >= '0' && c <= '9', c >= 'A' && c <= 'Z', c >= 'a' && c <= 'z', c == '-', c == '/':
			b.WriteByte(c)
		case c != '_':
			return "", fmt.Errorf("ref %q: character %q is not an escape", s, c)
		case strings.HasPrefix(s[i+1:], "_"):
			b.WriteByte('_')
			i++
		default:
			hex, _, ok := strings.Cut(s[i+1:], "_")
			v, err := strconv.ParseUint(hex, 16, 21)
			if !ok || err != nil {
				return "", fmt.Errorf("ref %q: malformed escape at byte %d", s, i)
			}
			b.WriteRune(rune(v))
			i += len(hex) + 1
		}
	}
	return b.String(), nil
}
