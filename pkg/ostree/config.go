package ostree

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

const maxConfig = 1 << 20

// Config is a repository's configuration, a GLib key file. Comments, order and
// keys that kedge does not know survive a change.
type Config struct {
	lines []string
}

// ParseConfig parses a key file.
func ParseConfig(data []byte) (*Config, error) {
	if bytes.IndexByte(data, 0) >= 0 {
		return nil, fmt.Errorf("configuration holds a NUL byte")
	}
	c := &Config{lines: strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")}
	inGroup := false
	for i, l := range c.lines {
		l = strings.TrimSpace(l)
		switch {
		case l == "" || strings.HasPrefix(l, "#"):
		case strings.HasPrefix(l, "[") && strings.HasSuffix(l, "]"):
			inGroup = true
		case !inGroup || strings.IndexByte(l, '=') <= 0:
			return nil, fmt.Errorf("configuration line %d is neither a group nor KEY=VALUE: %.60q", i+1, l)
		}
	}
	return c, nil
}

// Encode returns the key file.
func (c *Config) Encode() []byte { return []byte(strings.Join(c.lines, "\n") + "\n") }

// find returns the line of a key, or -1, and the line after the last one of
// its group (-1: no such group).
func (c *Config) find(group, key string) (at, end int) {
	at, end = -1, -1
	in := false
	for i, l := range c.lines {
		l = strings.TrimSpace(l)
		if strings.HasPrefix(l, "[") && strings.HasSuffix(l, "]") {
			if in = l[1:len(l)-1] == group; in {
				end = i + 1
			}
			continue
		}
		if !in || l == "" {
			continue
		}
		end = i + 1
		if k, _, ok := strings.Cut(l, "="); ok && strings.TrimSpace(k) == key {
			at = i
		}
	}
	return at, end
}

// Get returns a key's raw value; of a key that stands twice the last counts.
func (c *Config) Get(group, key string) (string, bool) {
	at, _ := c.find(group, key)
	if at < 0 {
		return "", false
	}
	_, v, _ := strings.Cut(c.lines[at], "=")
	return strings.TrimSpace(v), true
}

var unescape = strings.NewReplacer(`\s`, " ", `\n`, "\n", `\t`, "\t", `\r`, "\r", `\\`, `\`)

// Text returns a key's value as a string, or the default.
func (c *Config) Text(group, key, def string) string {
	if v, ok := c.Get(group, key); ok {
		return unescape.Replace(v)
	}
	return def
}

// Bool returns a key's value as a boolean, or the default.
func (c *Config) Bool(group, key string, def bool) bool {
	switch v, _ := c.Get(group, key); v {
	case "true", "1":
		return true
	case "false", "0":
		return false
	}
	return def
}

// Int returns a key's value as a number, or the default.
func (c *Config) Int(group, key string, def int64) int64 {
	v, _ := c.Get(group, key)
	if n, err := strconv.ParseInt(v, 10, 64); err == nil {
		return n
	}
	return def
}

// Set returns a copy of c with a key set.
func (c *Config) Set(group, key, value string) *Config {
	out := &Config{lines: slices.Clone(c.lines)}
	line := key + "=" + value
	switch at, end := c.find(group, key); {
	case at >= 0:
		out.lines[at] = line
	case end >= 0:
		out.lines = slices.Insert(out.lines, end, line)
	default:
		if len(out.lines) == 1 && out.lines[0] == "" {
			out.lines = nil
		}
		if len(out.lines) > 0 {
			out.lines = append(out.lines, "")
		}
		out.lines = append(out.lines, "["+group+"]", line)
	}
	return out
}

// minFree returns the number of bytes that a transaction must leave free on a
// file system of that size (core.min-free-space-size, -percent; default 3 %).
func (c *Config) minFree(total uint64) (uint64, error) {
	if v, ok := c.Get("core", "min-free-space-size"); ok {
		shift := map[string]uint{"MB": 20, "GB": 30, "TB": 40}
		if len(v) > 2 {
			n, err := strconv.ParseUint(v[:len(v)-2], 10, 32)
			if s := shift[v[len(v)-2:]]; err == nil && s > 0 && n < 1<<(63-s) {
				if n > 0 {
					return n << s, nil
				}
				if _, ok := c.Get("core", "min-free-space-percent"); !ok {
					return 0, nil
				}
				v = ""
			}
		}
		if v != "" {
			return 0, fmt.Errorf("configuration: min-free-space-size=%s is no size such as 500MB", v)
		}
	}
	percent := uint64(3)
	if v, ok := c.Get("core", "min-free-space-percent"); ok {
		n, err := strconv.ParseUint(v, 10, 64)
		if err != nil || n > 99 {
			return 0, fmt.Errorf("configuration: min-free-space-percent=%s is no number from 0 to 99", v)
		}
		percent = n
	}
	return total / 100 * percent, nil
}
