// Package retention decides which deployments stay: what a policy of the image's
// builder and of the admin says, and what no policy can give up. It decides on
// plain values and writes nothing; the sysroots and package host act on it.
package retention

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/BurntSushi/toml"

	"github.com/kedge-os/kedge/pkg/fault"
)

// DefaultKeep is how many deployments stay where nothing else is said, and
// minKeep the fewest: what boots, and what a rollback leads to. maxKeep is more
// than a boot menu can show.
const (
	DefaultKeep = 2
	minKeep     = 2
	maxKeep     = 100
)

// Policy says which deployments stay beside those that always do.
type Policy struct {
	// Keep is how many stay in all. Those that always stay count, except for
	// pinned and staged ones and those of other stateroots.
	Keep int
	// MaxAge is how long one stays that was not used; 0: for ever.
	MaxAge time.Duration
	// Root is what stays free on the file system of the store, and Boot on that
	// of /boot and of what the boot loader reads.
	Root, Boot Amount
}

// Default is the policy where no file says anything.
func Default() Policy { return Policy{Keep: DefaultKeep} }

// Amount is a part of a file system. The zero value is nothing.
type Amount struct {
	Bytes   int64
	Percent float64
}

// Of returns the bytes of an amount of a file system of size bytes.
func (a Amount) Of(size int64) int64 {
	return max(a.Bytes, int64(a.Percent/100*float64(size)))
}

// Files are where the policy is, beneath a root; what a later one says counts.
var Files = []string{"usr/lib/kedge/retention.toml", "etc/kedge/retention.toml"}

// MaxFile is how many bytes such a file may have.
const MaxFile = 64 << 10

// file is retention.toml.
type file struct {
	Keep        *int    `toml:"keep"`
	MaxAge      *string `toml:"max-age"`
	MinFree     *string `toml:"min-free"`
	MinFreeBoot *string `toml:"min-free-boot"`
}

// Load reads the policy from Files; read returns fs.ErrNotExist for one that is
// not there. With a file that is wrong nothing may be removed: what it meant to
// keep is not known. The policy then keeps everything, and err says why.
func Load(read func(name string) ([]byte, error)) (Policy, error) {
	p := Default()
	var problems []error
	for _, name := range Files {
		text, err := read(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			p, err = p.merge(string(text))
		}
		if err != nil {
			problems = append(problems, fault.New(fault.Corrupt, "correct /"+name+"; until then no deployment is removed by itself", "/%s: %w", name, err))
		}
	}
	if len(problems) > 0 {
		return Policy{Keep: math.MaxInt}, errors.Join(problems...)
	}
	return p, nil
}

// merge returns the policy with what the text of a file says.
func (p Policy) merge(text string) (Policy, error) {
	if len(text) > MaxFile {
		return p, fmt.Errorf("it has more than %d bytes", MaxFile)
	}
	var f file
	meta, err := toml.Decode(text, &f)
	if err != nil {
		return p, fmt.Errorf("not valid TOML: %w", err)
	}
	if unknown := meta.Undecoded(); len(unknown) > 0 {
		return p, fmt.Errorf("unknown key %q", unknown[0].String())
	}
	if f.Keep != nil {
		if p.Keep = *f.Keep; p.Keep < minKeep || p.Keep > maxKeep {
			return p, fmt.Errorf("keep = %d: it must be a number from %d to %d", p.Keep, minKeep, maxKeep)
		}
	}
	if f.MaxAge != nil {
		if p.MaxAge, err = parseAge(*f.MaxAge); err != nil {
			return p, fmt.Errorf("max-age: %w", err)
		}
	}
	if f.MinFree != nil {
		if p.Root, err = parseAmount(*f.MinFree); err != nil {
			return p, fmt.Errorf("min-free: %w", err)
		}
	}
	if f.MinFreeBoot != nil {
		if p.Boot, err = parseAmount(*f.MinFreeBoot); err != nil {
			return p, fmt.Errorf("min-free-boot: %w", err)
		}
	}
	return p, nil
}

var ageForm = regexp.MustCompile(`^([0-9]{1,5})([dw])$`)

// parseAge reads a time such as 12h, 30d or 8w; "0" for no limit.
func parseAge(s string) (time.Duration, error) {
	if s == "0" {
		return 0, nil
	}
	if m := ageForm.FindStringSubmatch(s); m != nil {
		n, err := strconv.Atoi(m[1])
		days := map[string]int{"d": 1, "w": 7}[m[2]]
		if err == nil && n > 0 {
			return time.Duration(n*days) * 24 * time.Hour, nil
		}
	}
	if d, err := time.ParseDuration(s); err == nil && d > 0 {
		return d, nil
	}
	return 0, fmt.Errorf("%q is no time such as 12h, 30d or 8w", s)
}

var amountForm = regexp.MustCompile(`^([0-9]{1,12}(?:\.[0-9]{1,3})?) ?(%|[kKMGT]i?B?|B)$`)

var units = map[string]float64{"B": 1, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30, "TI": 1 << 40}

// parseAmount reads bytes such as "500MB" or "2GiB", or a part such as "10%"; "0"
// for nothing.
func parseAmount(s string) (Amount, error) {
	if s == "0" {
		return Amount{}, nil
	}
	bad := fmt.Errorf("%q is no amount such as 10%%, 500MB or 2GiB", s)
	m := amountForm.FindStringSubmatch(s)
	if m == nil {
		return Amount{}, bad
	}
	n, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		return Amount{}, bad
	}
	if m[2] == "%" {
		if n > 90 {
			return Amount{}, fmt.Errorf("%q is more than 90%%", s)
		}
		return Amount{Percent: n}, nil
	}
	unit := strings.ToUpper(m[2])
	if unit != "B" {
		unit = strings.TrimSuffix(unit, "B")
	}
	n *= units[unit]
	if n > math.MaxInt64/2 {
		return Amount{}, bad
	}
	return Amount{Bytes: int64(n)}, nil
}
