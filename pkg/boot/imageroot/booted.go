package imageroot

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/boot/karg"
	"github.com/kedge-os/kedge/pkg/fault"
)

// bootedRoot is what the running machine says about the root it booted.
type bootedRoot struct {
	digest   string // of the image
	physical string // the directory that holds composefs/: HOST/sysroot
	boot     string // the boot directory
	cmdline  karg.Args
}

// The sources of the root's mount, by which initramfs and bootc know the image:
// the plain one, and that of an overlay for a root that forgets.
var rootSources = []string{"composefs:", "transient:composefs="}

// findBooted returns the machine's booted root if path is its sysroot; nil if
// the sysroot is another one or the machine did not boot an image.
func (s *Sysroot) findBooted(path string) (*bootedRoot, error) {
	mounts, err := s.host.ReadFile("proc/self/mountinfo")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	b := &bootedRoot{digest: rootImage(string(mounts)), physical: filepath.Join(s.opts.Host, "sysroot")}
	if b.digest == "" {
		return nil, nil
	}
	if same, err := isOneOf(path, s.opts.Host, b.physical); !same || err != nil {
		return nil, err
	}
	// A boot partition is mounted on the root, not below /sysroot; without one
	// the root has an empty directory there.
	b.boot = filepath.Join(s.opts.Host, "boot")
	if _, err := os.Stat(filepath.Join(b.boot, "loader")); err != nil {
		b.boot = filepath.Join(b.physical, "boot")
	}
	cmdline, err := s.host.ReadFile("proc/cmdline")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	b.cmdline = karg.Parse(strings.TrimSpace(string(cmdline)))
	return b, nil
}

// isOneOf reports whether path is one of the directories; those that are
// missing are none.
func isOneOf(path string, dirs ...string) (bool, error) {
	var here, st unix.Stat_t
	if err := unix.Stat(path, &here); err != nil {
		return false, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	for _, dir := range dirs {
		if unix.Stat(dir, &st) == nil && st.Dev == here.Dev && st.Ino == here.Ino {
			return true, nil
		}
	}
	return false, nil
}

// rootImage returns the digest that the source of the last mount on / names
// (proc(5), mountinfo), "" for a root that is no image.
func rootImage(mountinfo string) string {
	digest := ""
	for l := range strings.Lines(mountinfo) {
		head, tail, ok := strings.Cut(l, " - ")
		fields, rest := strings.Fields(head), strings.Fields(tail)
		if !ok || len(fields) < 5 || fields[4] != "/" || len(rest) < 2 {
			continue
		}
		digest = ""
		for _, prefix := range rootSources {
			if d, found := strings.CutPrefix(rest[1], prefix); found && digestForm.MatchString(d) {
				digest = d
			}
		}
	}
	return digest
}

// markBooted finds the booted deployment in the list: the entry with its digest
// and, where there are several, the one whose arguments the kernel has.
func (s *Sysroot) markBooted() error {
	if s.booted == nil {
		return nil
	}
	var found *Deployment
	best := -1
	for _, d := range s.list {
		if d.Digest != s.booted.digest {
			continue
		}
		score := 0
		// A boot loader adds arguments of its own.
		if args := d.Kargs(); !slices.ContainsFunc(args, func(a string) bool { return !s.booted.cmdline.Contains(a) }) {
			score = 1 + len(args)
		}
		if score > best {
			found, best = d, score
		}
	}
	if found == nil {
		return fault.New(fault.Corrupt, "check that /boot is mounted and that /boot/loader/entries has the booted deployment's entry",
			"the booted deployment is not among the boot entries (composefs:%s)", s.booted.digest)
	}
	found.Booted = true
	return nil
}

// requireBooted returns the booted deployment or says that there is none.
func (s *Sysroot) requireBooted(what string) (*Deployment, error) {
	if d := s.Booted(); d != nil {
		return d, nil
	}
	return nil, fault.New(fault.Conflict, "", "%s: this sysroot is not the booted one", what)
}
