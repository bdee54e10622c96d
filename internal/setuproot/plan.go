// Package setuproot mounts a composefs image as the root file system, in the
// initramfs, between the mount of the disk at /sysroot and the switch to what is
// there. cmd/kedge-initramfs is its only user.
//
// What to mount is in the kernel command line and in a small configuration file
// of the image; how bootc's initramfs reads both is what is done here too, so
// that either program boots a host that the other one, or bootc, installed.
//
// Nothing is written to the disk. The new root is assembled on a private tmpfs
// and moved over /sysroot as the last step, the commit point: before it /sysroot
// is the disk, as an admin in the emergency shell wants it.
package setuproot

import (
	"fmt"

	"github.com/BurntSushi/toml"

	"github.com/kedge-os/kedge/pkg/boot/karg"
	"github.com/kedge-os/kedge/pkg/composefs"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fsverity"
)

// ConfigPath is where an image's configuration lies in the initramfs.
const ConfigPath = "/usr/lib/composefs/setup-root-conf.toml"

// MountType is how a directory of the root that is not the image's is mounted.
type MountType string

// The mount types, as the configuration spells them.
const (
	MountNone      MountType = "none"      // the image's own, read-only; also "root"
	MountBind      MountType = "bind"      // the deployment's directory
	MountOverlay   MountType = "overlay"   // the image's, changes kept in the deployment's directory
	MountTransient MountType = "transient" // the image's, changes gone with the boot; also "volatile"
)

// UnmarshalText reads a mount type as the configuration spells it.
func (m *MountType) UnmarshalText(text []byte) error {
	switch t := MountType(text); t {
	case MountNone, MountBind, MountOverlay, MountTransient:
		*m = t
	case "root":
		*m = MountNone
	case "volatile":
		*m = MountTransient
	default:
		return fmt.Errorf("%q is no way to mount: want none, bind, overlay or transient", text)
	}
	return nil
}

// Config is setup-root-conf.toml.
type Config struct {
	Etc  DirConfig `toml:"etc"`
	Var  DirConfig `toml:"var"`
	Root struct {
		Transient bool `toml:"transient"`
	} `toml:"root"`
}

// DirConfig is the table of one directory. Mount goes before Transient.
type DirConfig struct {
	Mount     MountType `toml:"mount"`
	Transient bool      `toml:"transient"`
}

func (d DirConfig) mount() MountType {
	switch {
	case d.Mount != "":
		return d.Mount
	case d.Transient:
		return MountTransient
	}
	return MountBind
}

// ParseConfig reads a setup-root-conf.toml. What it does not know is an error: a
// root mounted in another way than its image asks for is worse than none.
func ParseConfig(text string) (Config, error) {
	var c Config
	md, err := toml.Decode(text, &c)
	if err == nil && len(md.Undecoded()) > 0 {
		err = fmt.Errorf("unknown key %s", md.Undecoded()[0])
	}
	if err != nil {
		return Config{}, fault.New(fault.Conflict, "", "read the image's configuration: %w", err)
	}
	return c, nil
}

// Plan is what to mount.
type Plan struct {
	composefs.Karg
	Etc, Var      MountType
	TransientRoot bool
}

// NewPlan reads a kernel command line. Where it names no image the plan is nil.
func NewPlan(cmdline string, c Config) (*Plan, error) {
	args := karg.Parse(cmdline)
	k, err := composefs.ParseKarg(args)
	if err != nil || k == nil {
		return nil, err
	}
	p := &Plan{Karg: *k, Etc: c.Etc.mount(), Var: c.Var.mount(), TransientRoot: c.Root.Transient}
	// systemd puts a tmpfs on /var when it is told that state is volatile, unless
	// something is mounted there; the image's configuration goes first.
	if c.Var == (DirConfig{}) {
		for _, v := range args.Values("systemd.volatile") {
			if v == "state" || v == "overlay" {
				p.Var = MountNone
			}
		}
	}
	return p, nil
}

// source is the mount source of the root: what tells a running system which
// image it was booted from.
func (p *Plan) source() string {
	if p.TransientRoot {
		return "transient:composefs=" + p.Digest.String()
	}
	return imageSource(p.Digest)
}

func imageSource(d fsverity.Digest) string { return "composefs:" + d.String() }

// stacked reports whether an overlay will lie on the image's overlay.
func (p *Plan) stacked() bool {
	over := func(m MountType) bool { return m == MountOverlay || m == MountTransient }
	return p.TransientRoot || over(p.Etc) || over(p.Var)
}
