package ostree

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/kedge-os/kedge/pkg/fault"
)

// maxJSONDepth bounds the nesting of a manifest or config.
const maxJSONDepth = 64

// canonicalJSON rewrites a JSON text as RFC 8785 wants it, which is how
// ostree-ext keeps manifests and configs in a commit: no white space, members
// sorted by the UTF-16 code units of their names, strings with the fewest
// escapes. Integers keep their digits. Members that ostree-ext does not know
// are kept; it ignores them.
func canonicalJSON(data []byte) ([]byte, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return nil, fault.New(fault.Corrupt, "", "parse the image's JSON: %w", err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, fault.New(fault.Corrupt, "", "parse the image's JSON: data after its end")
	}
	return appendJSON(nil, v, 0)
}

func appendJSON(b []byte, v any, depth int) ([]byte, error) {
	if depth > maxJSONDepth {
		return nil, fault.New(fault.Corrupt, "", "the image's JSON is nested more than %d levels deep", maxJSONDepth)
	}
	var err error
	switch v := v.(type) {
	case nil:
		return append(b, "null"...), nil
	case bool:
		return strconv.AppendBool(b, v), nil
	case json.Number:
		return appendNumber(b, v)
	case string:
		return appendString(b, v), nil
	case []any:
		b = append(b, '[')
		for i, e := range v {
			if i > 0 {
				b = append(b, ',')
			}
			if b, err = appendJSON(b, e, depth+1); err != nil {
				return nil, err
			}
		}
		return append(b, ']'), nil
	case map[string]any:
		names := make([]string, 0, len(v))
		for name := range v {
			names = append(names, name)
		}
		slices.SortFunc(names, compareUTF16)
		b = append(b, '{')
		for i, name := range names {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(appendString(b, name), ':')
			if b, err = appendJSON(b, v[name], depth+1); err != nil {
				return nil, err
			}
		}
		return append(b, '}'), nil
	}
	return nil, fmt.Errorf("unexpected JSON value of type %T", v)
}

func appendNumber(b []byte, n json.Number) ([]byte, error) {
	if _, err := n.Int64(); err == nil {
		if n == "-0" {
			n = "0"
		}
		return append(b, n...), nil
	}
	f, err := n.Float64()
	if err != nil {
		return nil, fault.New(fault.Corrupt, "", "parse the image's JSON: number %s: %w", n, err)
	}
	out, err := json.Marshal(f) // ECMAScript's form, as RFC 8785 wants
	return append(b, out...), err
}

func appendString(b []byte, s string) []byte {
	b = append(b, '"')
	for _, c := range s {
		switch c {
		case '"', '\\':
			b = append(b, '\\', byte(c))
		case '\b':
			b = append(b, `\b`...)
		case '\t':
			b = append(b, `\t`...)
		case '\n':
			b = append(b, `\n`...)
		case '\f':
			b = append(b, `\f`...)
		case '\r':
			b = append(b, `\r`...)
		default:
			if c < 0x20 {
				b = fmt.Appendf(b, `\u%04x`, c)
				continue
			}
			b = utf8.AppendRune(b, c)
		}
	}
	return append(b, '"')
}

func compareUTF16(a, b string) int {
	return slices.Compare(utf16.Encode([]rune(a)), utf16.Encode([]rune(b)))
}
