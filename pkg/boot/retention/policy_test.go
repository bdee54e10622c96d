package retention

import (
	"io/fs"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/kedge-os/kedge/pkg/fault"
)

// texts stands for the files of a root, by name.
func texts(files map[string]string) func(string) ([]byte, error) {
	return func(name string) ([]byte, error) {
		text, ok := files[name]
		if !ok {
			return nil, fs.ErrNotExist
		}
		return []byte(text), nil
	}
}

const image, admin = "usr/lib/kedge/retention.toml", "etc/kedge/retention.toml"

func TestLoad(t *testing.T) {
	const day = 24 * time.Hour
	for name, tc := range map[string]struct {
		files map[string]string
		want  Policy
	}{
		"no file":         {nil, Policy{Keep: 2}},
		"an empty file":   {map[string]string{admin: "# keep = 7\n"}, Policy{Keep: 2}},
		"of the image":    {map[string]string{image: "keep = 5\nmax-age = \"8w\"\n"}, Policy{Keep: 5, MaxAge: 56 * day}},
		"of the admin":    {map[string]string{admin: "keep = 3\nmin-free = \"10%\"\nmin-free-boot = \"64MiB\""}, Policy{Keep: 3, Root: Amount{Percent: 10}, Boot: Amount{Bytes: 64 << 20}}},
		"the admin's say": {map[string]string{image: "keep = 5\nmax-age = \"30d\"\nmin-free = \"2 GB\"\n", admin: "keep = 4\nmax-age = \"0\"\n"}, Policy{Keep: 4, Root: Amount{Bytes: 2e9}}},
		"hours":           {map[string]string{admin: "max-age = \"36h\"\nmin-free = \"1.5GiB\""}, Policy{Keep: 2, MaxAge: 36 * time.Hour, Root: Amount{Bytes: 3 << 29}}},
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := Load(texts(tc.files)); err != nil || got != tc.want {
				t.Errorf("policy = %+v, %v; want %+v", got, err, tc.want)
			}
		})
	}
}

// TestLoadRefuses: what is not understood keeps everything, and is told with the
// name of its file.
func TestLoadRefuses(t *testing.T) {
	for text, why := range map[string]string{
		"keep = 1":                            "from 2 to 100",
		"keep = 101":                          "from 2 to 100",
		"keep = \"3\"":                        "keep",
		"kep = 3":                             `unknown key "kep"`,
		"[keep]\nn = 3":                       "keep",
		"keep = ":                             "not valid TOML",
		"max-age = \"soon\"":                  "no time",
		"max-age = \"-3h\"":                   "no time",
		"max-age = \"0d\"":                    "no time",
		"min-free = \"10\"":                   "no amount",
		"min-free = \"91%\"":                  "more than 90%",
		"min-free = \"-5%\"":                  "no amount",
		"min-free-boot = \"9999999TiB\"":      "no amount",
		strings.Repeat("#", MaxFile) + "\n\n": "more than 65536 bytes",
	} {
		for _, name := range Files {
			p, err := Load(texts(map[string]string{name: text}))
			if fault.KindOf(err) != fault.Corrupt || fault.HintOf(err) == "" || !strings.Contains(err.Error(), why) || !strings.Contains(err.Error(), "/"+name) {
				t.Errorf("%.40q in %s: %v (%s), want a Corrupt error about %q", text, name, err, fault.KindOf(err), why)
			}
			if p.Keep != math.MaxInt || p.MaxAge != 0 || p.Root != (Amount{}) {
				t.Errorf("%.40q: policy = %+v, want one that keeps everything", text, p)
			}
		}
	}
}

func TestAmountOf(t *testing.T) {
	for _, tc := range []struct {
		a          Amount
		size, want int64
	}{
		{Amount{}, 1000, 0},
		{Amount{Percent: 12.5}, 1000, 125},
		{Amount{Bytes: 2000}, 1000, 2000},
	} {
		if got := tc.a.Of(tc.size); got != tc.want {
			t.Errorf("%+v of %d = %d, want %d", tc.a, tc.size, got, tc.want)
		}
	}
}

func FuzzMerge(f *testing.F) {
	f.Add("keep = 3\nmax-age = \"30d\"\nmin-free = \"10%\"\nmin-free-boot = \"64MiB\"\n")
	f.Add("keep = 9223372036854775807")
	f.Add("min-free = \"999999999999.999TiB\"")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := Default().merge(text)
		if err != nil {
			return
		}
		if p.Keep < minKeep || p.Keep > maxKeep || p.MaxAge < 0 || p.Root.Of(1<<40) < 0 || p.Boot.Of(1<<40) < 0 {
			t.Errorf("%q is taken for %+v", text, p)
		}
	})
}
