// Package osrelease reads os-release(5).
package osrelease

import "strings"

// Parse reads os-release(5): shell assignments without expansions.
func Parse(text string) map[string]string {
	values := map[string]string{}
	for l := range strings.SplitSeq(text, "\n") {
		key, value, ok := strings.Cut(l, "=")
		if !ok || strings.HasPrefix(l, "#") {
			continue
		}
		values[key] = unquote(strings.TrimSpace(value))
	}
	return values
}

func unquote(s string) string {
	var b strings.Builder
	var quote byte
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case quote == 0 && (c == '"' || c == '\''):
			quote = c
		case quote != 0 && c == quote:
			quote = 0
		case c == '\\' && quote != '\'' && i+1 < len(s):
			i++
			if quote == '"' && !strings.ContainsRune("\"\\$`", rune(s[i])) {
				b.WriteByte('\\')
			}
			b.WriteByte(s[i])
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}
