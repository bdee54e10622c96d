package boot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"

	"github.com/kedge-os/kedge/pkg/boot/bls"
	"github.com/kedge-os/kedge/pkg/boot/karg"
	"github.com/kedge-os/kedge/pkg/boot/keyfile"
	"github.com/kedge-os/kedge/pkg/boot/osrelease"
	"github.com/kedge-os/kedge/pkg/fault"
)

// config is the [sysroot] group of the repository's config as far as it
// concerns boot entries.
type config struct {
	prefix     string            // before paths in entries: "/" or "/boot/"
	tries      uint64            // of boot counting; 0: entries are not counted
	except     map[string]string // keys for all entries but the default
	bootloader string
}

func (s *Sysroot) readConfig() (config, error) {
	c := config{prefix: "/", except: map[string]string{}}
	text, err := readSmall(s.root, "ostree/repo/config")
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return c, err
	}
	f, err := keyfile.Parse(string(text))
	if err != nil {
		return c, fmt.Errorf("ostree/repo/config: %w", err)
	}
	if f.Bool("sysroot", "bootprefix", false) {
		c.prefix = "/boot/"
	}
	if v, ok := f.Get("sysroot", "boot-counting-tries"); ok {
		if c.tries, err = strconv.ParseUint(v, 10, 32); err != nil || c.tries > 5 {
			return c, fault.New(fault.Corrupt, "it must be a number from 0 to 5", "ostree/repo/config: boot-counting-tries=%s", v)
		}
	}
	list, _ := f.List("sysroot", "bls-append-except-default")
	for _, kv := range list {
		k, v, ok := strings.Cut(kv, "=")
		if !ok {
			return c, fault.New(fault.Corrupt, "each item must be KEY=VALUE", "ostree/repo/config: bls-append-except-default has %q", kv)
		}
		c.except[k] = v
	}
	c.bootloader, _ = f.Get("sysroot", "bootloader")
	return c, nil
}

// entryName returns the file name of the entry of d, the i-th of n. A new
// entry begins with all its tries, a known one keeps what is left of them.
func (c config) entryName(d *Deployment, i, n int) string {
	base := fmt.Sprintf("ostree-%d", n-i)
	if c.tries == 0 {
		return base + ".conf"
	}
	if d.entryFile == "" {
		return fmt.Sprintf("%s+%d.conf", base, c.tries)
	}
	if name, ok := bls.ParseName(d.entryFile); ok && name.Counter != nil {
		return fmt.Sprintf("%s+%d-%d.conf", base, name.Counter.Left, name.Counter.Done)
	}
	return base + ".conf"
}

// entryFor makes the boot entry of d as the i-th of n deployments in
// loader.V. What the entry had beside the keys set here stays.
func (s *Sysroot) entryFor(c config, d *Deployment, k *Kernel, root *os.Root, i, n, version int, showStateroot bool) (*bls.Entry, error) {
	title, err := s.title(d, root, i, showStateroot)
	if err != nil {
		return nil, err
	}
	e := d.Entry.Clone()
	dir := c.prefix + "ostree/" + d.bootName() + "/"
	link := bootlink{version: version, stateroot: d.Stateroot, bootcsum: d.Bootcsum, serial: d.BootSerial}
	options, _ := e.Get("options")
	args := karg.Parse(options)
	initrds := e.Initrds()
	switch {
	case k.initramfs != nil:
		// Behind the deployment's own stand overlays, which are the machine's.
		initrds = append([]string{dir + k.initramfs.dst}, initrds[min(1, len(initrds)):]...)
	default:
		initrds = nil
		args = args.Set("init=/" + link.path() + "/usr/lib/ostree/ostree-prepare-root")
	}
	e.Set("title", title)
	e.Set("version", strconv.Itoa(n-i))
	e.Set("linux", dir+k.kernel.dst)
	e.SetInitrds(initrds)
	setOrDelete(e, "devicetree", k.devicetree != nil, func() string { return dir + k.devicetree.dst })
	setOrDelete(e, "fdtdir", k.dtbDir, func() string { return dir + "dtb" })
	if k.aboot != nil {
		e.Set("aboot", "/ostree/"+d.bootName()+"/"+k.aboot.dst)
		e.Set("abootcfg", "/"+d.Dir()+"/usr/lib/ostree-boot/aboot.cfg")
	}
	e.Set("options", args.Set("ostree=/"+link.path()).String())
	for key, value := range c.except {
		setOrDelete(e, key, i > 0, func() string { return value })
	}
	return e, nil
}

func setOrDelete(e *bls.Entry, key string, set bool, value func() string) {
	if set {
		e.Set(key, value())
	} else {
		e.Delete(key)
	}
}

// title returns "PRETTY_NAME VERSION (ostree[:STATEROOT]:INDEX)".
func (s *Sysroot) title(d *Deployment, root *os.Root, i int, showStateroot bool) (string, error) {
	text, err := readSmall(root, "usr/lib/os-release")
	if errors.Is(err, fs.ErrNotExist) {
		text, err = readSmall(root, "etc/os-release")
	}
	if errors.Is(err, fs.ErrNotExist) {
		return "", fault.New(fault.Corrupt, "the image has to be repaired", "the image has no os-release, from which its boot entry takes its name")
	}
	if err != nil {
		return "", fmt.Errorf("read the image's os-release: %w", err)
	}
	release := osrelease.Parse(string(text))
	title := release["PRETTY_NAME"]
	if title == "" {
		title = release["ID"]
	}
	if title == "" {
		return "", fault.New(fault.Corrupt, "the image has to be repaired", "the image's os-release has neither PRETTY_NAME nor ID")
	}
	version, err := s.Version(d)
	if err != nil {
		return "", err
	}
	if version != "" && !strings.Contains(title, version) {
		title += " " + version
	}
	// A line break would begin another key of the entry.
	title = strings.Map(func(r rune) rune {
		if r == '\n' || r == '\r' {
			return ' '
		}
		return r
	}, title)
	if showStateroot {
		return fmt.Sprintf("%s (ostree:%s:%d)", title, d.Stateroot, i), nil
	}
	return fmt.Sprintf("%s (ostree:%d)", title, i), nil
}

// Version returns the version label of a deployment's commit, "" where it has
// none or the commit is not in the repository any more.
func (s *Sysroot) Version(d *Deployment) (string, error) {
	if s.opts.Repo == nil {
		return "", nil
	}
	v, err := s.opts.Repo.CommitVersion(d.Checksum)
	if errors.Is(err, fs.ErrNotExist) || fault.KindOf(err) == fault.NotFound {
		return "", nil
	}
	return v, err
}

// generated are files that libostree's loader backends write beside the
// entries, from the entries.
var generated = []string{"grub.cfg", "syslinux.cfg", "uEnv.txt", "zipl.conf"}

// refuseGenerated refuses to swap the entries of a host whose boot loader
// reads a file that libostree generates from them: it would boot the old list.
func (s *Sysroot) refuseGenerated(c config, boot *os.Root) error {
	const hint = "set bootloader=none in the [sysroot] group of /ostree/repo/config once the boot loader reads /boot/loader/entries itself"
	switch c.bootloader {
	case "", "none", "auto":
	default:
		return fault.New(fault.Conflict, hint, "the sysroot's boot loader configuration is generated (bootloader=%s)", c.bootloader)
	}
	for _, name := range generated {
		if _, err := boot.Lstat(path.Join(loaderDir(s.version), name)); err == nil && c.bootloader != "none" {
			return fault.New(fault.Conflict, hint, "the sysroot's boot loader configuration is generated: /boot/loader/%s", name)
		}
	}
	return nil
}
