package boot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/boot/karg"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/ostree/object"
)

// bootedRoot is what the running machine says about the root it booted.
type bootedRoot struct {
	physical string // the directory that holds ostree/: HOST/sysroot, else HOST
	dev, ino uint64 // the booted deployment's directory
	ostree   string // the value of ostree= on the kernel's command line
}

// runBooted is what ostree-prepare-root writes: an a{sv}, or an empty file
// where libostree is older than 2023.8.
const runBooted = "run/ostree-booted"

// findBooted returns the machine's booted root if path is its sysroot, by
// device and inode; nil if the sysroot is another one or the machine did not
// boot an ostree root.
func (s *Sysroot) findBooted(path string) (*bootedRoot, error) {
	data, err := s.host.ReadFile(runBooted)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	b := &bootedRoot{physical: s.opts.Host}
	var here, root unix.Stat_t
	if err := unix.Stat(path, &here); err != nil {
		return nil, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	if err := unix.Stat(s.opts.Host, &root); err != nil {
		return nil, &fs.PathError{Op: "stat", Path: s.opts.Host, Err: err}
	}
	match := here.Dev == root.Dev && here.Ino == root.Ino
	physical := filepath.Join(s.opts.Host, "sysroot")
	if _, err := os.Stat(filepath.Join(physical, "ostree/deploy")); err == nil {
		b.physical = physical
		var st unix.Stat_t
		if err := unix.Stat(physical, &st); err != nil {
			return nil, &fs.PathError{Op: "stat", Path: physical, Err: err}
		}
		match = match || here.Dev == st.Dev && here.Ino == st.Ino
	}
	if !match {
		return nil, nil
	}
	b.dev, b.ino = root.Dev, root.Ino
	if len(data) > 0 {
		meta, err := object.DecodeDict(data)
		if err != nil {
			return nil, fault.New(fault.Corrupt, "", "read /%s: %w", runBooted, err)
		}
		// With composefs / is an overlay; this names the directory beneath it.
		if v, ok := meta.Get("backing-root-device-inode"); ok && v.Type == "(tt)" && len(v.Data) == 16 {
			b.dev, b.ino = binary.NativeEndian.Uint64(v.Data), binary.NativeEndian.Uint64(v.Data[8:])
		}
	}
	if cmdline, err := s.host.ReadFile("proc/cmdline"); err == nil {
		if v := karg.Parse(string(cmdline)).Values("ostree"); len(v) > 0 {
			b.ostree = v[len(v)-1]
		}
	}
	return b, nil
}

// markBooted finds the booted deployment in the list: by device and inode, and
// where those name none (composefs with an older ostree-prepare-root), by the
// link that the kernel's command line names.
func (s *Sysroot) markBooted() error {
	if s.booted == nil {
		return nil
	}
	for _, d := range s.list {
		if d.dev == s.booted.dev && d.ino == s.booted.ino {
			d.Booted = true
			return nil
		}
	}
	if link, err := parseBootlink(s.booted.ostree); err == nil {
		if target, err := s.root.Stat(link.path()); err == nil {
			for _, d := range s.list {
				if st, err := s.root.Stat(d.Dir()); err == nil && os.SameFile(st, target) {
					d.Booted = true
					return nil
				}
			}
		}
	}
	return fault.New(fault.Corrupt, "check that /boot is mounted and that /boot/loader/entries has the booted deployment's entry",
		"the booted deployment is not among the boot entries (ostree=%s)", s.booted.ostree)
}

// requireBooted returns the booted deployment or says that there is none.
func (s *Sysroot) requireBooted(what string) (*Deployment, error) {
	if d := s.Booted(); d != nil {
		return d, nil
	}
	return nil, fault.New(fault.Conflict, "", "%s: this sysroot is not the booted one", what)
}

// runDir is where libostree keeps the state that ends with the boot.
const runDir = "run/ostree"

// removeRun removes a file of the machine's run directory; a missing one is
// fine.
func (s *Sysroot) removeRun(name string) error {
	if err := s.host.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove /%s: %w", name, err)
	}
	return nil
}
