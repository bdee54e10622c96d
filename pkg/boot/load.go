package boot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/kedge-os/kedge/internal/dirfd"
	"github.com/kedge-os/kedge/pkg/boot/bls"
	"github.com/kedge-os/kedge/pkg/boot/karg"
	"github.com/kedge-os/kedge/pkg/boot/keyfile"
	"github.com/kedge-os/kedge/pkg/fault"
)

// maxEntry bounds a boot entry, an origin and a link's target.
const maxEntry = 1 << 20

// loadTries is how often Load begins anew when a writer changes the list under
// its eyes.
const loadTries = 5

// Load reads the list of deployments again. The boot entries are the truth:
// an entry leads through its ostree= argument and the farm to a directory.
// Readers take no lock: a list that another process replaced meanwhile is read
// again.
func (s *Sysroot) Load() error {
	for try := 1; ; try++ {
		err := s.loadOnce()
		version, verr := s.readVersion()
		sub, serr := s.readSubversion(version)
		if try == loadTries || verr != nil || serr != nil || version == s.version && sub == s.sub {
			return err
		}
	}
}

func (s *Sysroot) loadOnce() error {
	s.list, s.problems = nil, nil
	var err error
	if s.version, err = s.readVersion(); err != nil {
		return err
	}
	if s.sub, err = s.readSubversion(s.version); err != nil {
		return err
	}
	if err := s.loadEntries(); err != nil {
		return err
	}
	s.readMirror()
	if err := s.markBooted(); err != nil {
		return err
	}
	if err := s.loadStaged(); err != nil {
		return err
	}
	for i, d := range s.list {
		d.Index = i
	}
	return nil
}

// readVersion reads V from the loader symlink; 0 where there is none yet.
func (s *Sysroot) readVersion() (int, error) {
	if s.boot == nil {
		return 0, nil
	}
	st, err := s.boot.Lstat("loader")
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return 0, nil
	case err != nil:
		return 0, err
	case st.Mode().Type() != fs.ModeSymlink:
		return 0, fault.New(fault.Conflict, "an ESP mounted at /boot, or another boot manager's directory, cannot be an ostree boot directory: mount it elsewhere",
			"boot/loader is not a symlink")
	}
	target, err := s.boot.Readlink("loader")
	if err != nil {
		return 0, err
	}
	switch target {
	case "loader.0":
		return 0, nil
	case "loader.1":
		return 1, nil
	}
	return 0, fault.New(fault.Corrupt, "it should be loader.0 or loader.1", "the symlink boot/loader leads to %q", target)
}

// readSubversion reads S from ostree/boot.V; 0 where there is none yet.
func (s *Sysroot) readSubversion(version int) (int, error) {
	name := fmt.Sprintf("ostree/boot.%d", version)
	target, err := s.root.Readlink(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return 0, nil
	case err != nil:
		return 0, err
	case strings.HasSuffix(target, ".0"):
		return 0, nil
	case strings.HasSuffix(target, ".1"):
		return 1, nil
	}
	return 0, fault.New(fault.Corrupt, "", "the symlink %s leads to %q", name, target)
}

func loaderDir(version int) string  { return fmt.Sprintf("loader.%d", version) }
func entriesDir(version int) string { return loaderDir(version) + "/entries" }

// isEntryName reports whether a file in loader/entries is in libostree's name
// space; both its namings are, ostree-N.conf and ostree-N-STATEROOT.conf.
func isEntryName(name string) bool {
	return strings.HasPrefix(name, "ostree-") && strings.HasSuffix(name, ".conf")
}

func (s *Sysroot) loadEntries() error {
	if s.boot == nil {
		return nil
	}
	names, err := dirfd.ReadNames(s.boot, entriesDir(s.version))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, name := range names {
		if !isEntryName(name) {
			continue
		}
		d, err := s.loadEntry(name)
		if err != nil {
			err = fmt.Errorf("boot entry %s: %w", name, err)
			if fault.KindOf(err) != fault.Corrupt && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			// One broken entry must not keep the others from being listed.
			s.problem(err)
			continue
		}
		s.list = append(s.list, d)
	}
	slices.SortStableFunc(s.list, func(a, b *Deployment) int {
		va, _ := a.Entry.Get("version")
		vb, _ := b.Entry.Get("version")
		return -bls.CompareVersions(va, vb)
	})
	return nil
}

// problem notes what is passed over. It is told once, however often a command reads
// the sysroot.
func (s *Sysroot) problem(err error) {
	s.problems = append(s.problems, err)
	if text := err.Error(); !slices.Contains(s.told, text) {
		s.told = append(s.told, text)
		s.log.Warn("passed over", "error", err)
	}
}

func (s *Sysroot) loadEntry(name string) (*Deployment, error) {
	text, err := readSmall(s.boot, path.Join(entriesDir(s.version), name))
	if err != nil {
		return nil, err
	}
	entry := bls.Parse(string(text))
	options, _ := entry.Get("options")
	args := karg.Parse(options).Values("ostree")
	if len(args) == 0 {
		return nil, fault.New(fault.Corrupt, "", "it has no ostree= argument")
	}
	link, err := parseBootlink(args[0])
	if err != nil {
		return nil, err
	}
	target, err := s.root.Readlink(link.path())
	if err != nil {
		return nil, fmt.Errorf("follow ostree=%s: %w", args[0], err)
	}
	checksum, serial, ok := parseDeployName(path.Base(target))
	if !ok {
		return nil, fault.New(fault.Corrupt, "", "the link %s leads to %q, which is no deployment", link.path(), target)
	}
	d := &Deployment{
		Stateroot: link.stateroot, Checksum: checksum, Serial: serial,
		Bootcsum: link.bootcsum, BootSerial: link.serial, Entry: entry, entryFile: name,
	}
	if err := s.complete(d); err != nil {
		return nil, err
	}
	return d, nil
}

// complete fills in what the deployment's directory and origin tell.
func (s *Sysroot) complete(d *Deployment) error {
	st, err := statOf(s.root, d.Dir())
	if err != nil {
		return fmt.Errorf("deployment %s: %w", d.Name(), err)
	}
	d.dev, d.ino = st.Dev, st.Ino
	d.Origin = &keyfile.File{}
	text, err := readSmall(s.root, d.OriginPath())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the origin: %w", err)
	}
	origin, err := keyfile.Parse(string(text))
	if err != nil {
		s.problem(fmt.Errorf("origin of %s: %w", d.Name(), err))
		return nil
	}
	d.Origin = origin
	return nil
}

// readSmall reads a small regular file.
func readSmall(root *os.Root, name string) ([]byte, error) {
	return dirfd.ReadFile(root, name, maxEntry)
}
