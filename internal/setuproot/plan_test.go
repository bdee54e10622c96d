package setuproot

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kedge-os/kedge/pkg/composefs"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fsverity"
)

var (
	hexA    = strings.Repeat("a1", 64)
	digestA = fsverity.Digest(strings.Repeat("\xa1", 64))
	digestB = fsverity.Digest(strings.Repeat("\xb2", 64))
)

func TestPlan(t *testing.T) {
	image := func(p Plan) *Plan {
		if p.Digest == "" {
			p.Digest = digestA
		}
		if p.Etc == "" {
			p.Etc = MountBind
		}
		if p.Var == "" {
			p.Var = MountBind
		}
		return &p
	}
	optional := composefs.Karg{Digest: digestA, AllowNoVerity: true}
	for _, tc := range []struct {
		name, cmdline, config, source string
		stacked                       bool
		want                          *Plan
	}{
		{name: "no image", cmdline: "root=LABEL=root rw ostree=/ostree/boot.1/x"},
		{name: "an empty command line"},
		{name: "bootc's argument", cmdline: "root=LABEL=root composefs=" + hexA + " rw\n", want: image(Plan{})},
		{name: "verity optional", cmdline: "composefs=?" + hexA, want: image(Plan{Karg: optional})},
		{name: "the long argument goes first", cmdline: "composefs=" + digestB.String() + " composefs.digest=v1-sha512-12:" + hexA, want: image(Plan{})},
		{name: "the long argument, verity optional", cmdline: "composefs.digest=?v1-sha512-12:" + hexA, want: image(Plan{Karg: optional})},
		{name: "in quotes it is another's argument", cmdline: `note="x composefs=` + digestB.String() + `" composefs=` + hexA, want: image(Plan{})},
		{
			name: "transient root", cmdline: "composefs=" + hexA, config: "[root]\ntransient = true",
			source: "transient:composefs=" + hexA, stacked: true, want: image(Plan{TransientRoot: true}),
		},
		{name: "transient etc", cmdline: "composefs=" + hexA, config: "[etc]\ntransient = true", stacked: true, want: image(Plan{Etc: MountTransient})},
		{name: "mount goes before transient", cmdline: "composefs=" + hexA, config: "[etc]\nmount = \"bind\"\ntransient = true", want: image(Plan{})},
		{
			name: "other names", cmdline: "composefs=" + hexA, config: "[etc]\nmount = \"root\"\n[var]\nmount = \"volatile\"",
			stacked: true, want: image(Plan{Etc: MountNone, Var: MountTransient}),
		},
		{name: "overlay", cmdline: "composefs=" + hexA, config: "[etc]\nmount = \"overlay\"", stacked: true, want: image(Plan{Etc: MountOverlay})},
		{name: "volatile state", cmdline: "systemd.volatile=state composefs=" + hexA, want: image(Plan{Var: MountNone})},
		{name: "volatile, another kind", cmdline: "systemd.volatile=yes composefs=" + hexA, want: image(Plan{})},
		{name: "the image goes before volatile", cmdline: "systemd.volatile=state composefs=" + hexA, config: "[var]\nmount = \"bind\"", want: image(Plan{})},
	} {
		t.Run(tc.name, func(t *testing.T) {
			config, err := ParseConfig(tc.config)
			if err != nil {
				t.Fatal(err)
			}
			got, err := NewPlan(tc.cmdline, config)
			if err != nil {
				t.Fatal(err)
			}
			if tc.want != nil && tc.want.Karg == (composefs.Karg{}) {
				tc.want.Karg = composefs.Karg{Digest: digestA}
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Fatalf("(-want +got):\n%s", diff)
			}
			if got == nil {
				return
			}
			if tc.source == "" {
				tc.source = "composefs:" + hexA
			}
			if got.source() != tc.source {
				t.Errorf("mount source is %s, want %s", got.source(), tc.source)
			}
			if got.stacked() != tc.stacked {
				t.Errorf("stacked is %v, want %v: it decides how the image is mounted", got.stacked(), tc.stacked)
			}
		})
	}
}

func TestPlanRefuses(t *testing.T) {
	for name, tc := range map[string]struct{ cmdline, config, want string }{
		"no digest":         {"composefs=", "", "composefs="},
		"a short digest":    {"composefs=abc", "", "abc"},
		"another hash":      {"composefs.digest=v1-sha256-12:" + hexA, "", "v1-sha256-12"},
		"no TOML":           {"", "etc = [", "configuration"},
		"an unknown key":    {"", "[etc]\nencrypted = true", "etc.encrypted"},
		"an unknown table":  {"", "[home]\nmount = \"bind\"", "home"},
		"an unknown mount":  {"", "[etc]\nmount = \"tmpfs\"", `"tmpfs" is no way to mount`},
		"a mount of a list": {"", "[etc]\nmount = [\"bind\"]", "configuration"},
	} {
		t.Run(name, func(t *testing.T) {
			config, err := ParseConfig(tc.config)
			if err == nil {
				_, err = NewPlan(tc.cmdline, config)
			}
			if k := fault.KindOf(err); k != fault.Conflict && k != fault.Corrupt {
				t.Errorf("error %v is of kind %v", err, k)
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error is %v, want it to name %s", err, tc.want)
			}
		})
	}
}

func TestOverlayOptions(t *testing.T) {
	for _, tc := range []struct {
		o    overlay
		want string
	}{
		{overlay{lower: "/run/e", data: "/proc/self/fd/9", verity: true}, "lowerdir=/run/e::/proc/self/fd/9,metacopy=on,redirect_dir=on,verity=require"},
		{overlay{lower: "/run/e", data: "/proc/self/fd/9"}, "lowerdir=/run/e::/proc/self/fd/9,metacopy=on,redirect_dir=on"},
		{overlay{lower: "/a", upper: "/u", work: "/w"}, "lowerdir=/a,upperdir=/u,workdir=/w"},
	} {
		if got := tc.o.options(); got != tc.want {
			t.Errorf("options are %s, want %s", got, tc.want)
		}
	}
}

// FuzzPlan looks for command lines and configurations on which reading breaks,
// or gives a plan that names no image.
func FuzzPlan(f *testing.F) {
	f.Add("root=LABEL=root composefs="+hexA+" rw", "")
	f.Add("composefs.digest=?v1-sha512-12:"+hexA+" systemd.volatile=state", "[etc]\ntransient = true")
	f.Add(`a="b composefs=x" composefs=?`+hexA, "[root]\ntransient = true\n[var]\nmount = \"overlay\"")
	f.Add("composefs=", "[etc]\nmount = \"tmpfs\"")
	f.Fuzz(func(t *testing.T, cmdline, config string) {
		c, err := ParseConfig(config)
		if err != nil {
			if k := fault.KindOf(err); k != fault.Conflict {
				t.Fatalf("a configuration is refused with kind %v: %v", k, err)
			}
			return
		}
		p, err := NewPlan(cmdline, c)
		switch {
		case err != nil && fault.KindOf(err) != fault.Corrupt:
			t.Fatalf("a command line is refused with kind %v: %v", fault.KindOf(err), err)
		case err != nil && p != nil:
			t.Fatalf("a plan and the error %v", err)
		case p != nil && p.Digest.Algorithm() == 0:
			t.Fatalf("the plan %+v names no image", p)
		}
		if p != nil && !strings.HasSuffix(p.source(), p.Digest.String()) {
			t.Fatalf("the mount source %s does not name the image", p.source())
		}
	})
}
