package imageroot

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/internal/dirfd"
	"github.com/kedge-os/kedge/pkg/boot/bls"
	"github.com/kedge-os/kedge/pkg/boot/karg"
	"github.com/kedge-os/kedge/pkg/boot/keyfile"
	"github.com/kedge-os/kedge/pkg/boot/loader"
	"github.com/kedge-os/kedge/pkg/boot/uki"
	"github.com/kedge-os/kedge/pkg/fault"
)

// maxEntry bounds a boot entry, an origin and the marker.
const maxEntry = 1 << 20

// loadTries is how often Load begins anew when a writer changes the list under
// its eyes.
const loadTries = 5

// Load reads the list of deployments again. The boot entries are the truth: an
// entry leads through its composefs= argument to a state directory. Readers
// take no lock: a list that another process replaced meanwhile is read again.
func (s *Sysroot) Load() error {
	for try := 1; ; try++ {
		before := s.entriesInode()
		err := s.loadOnce()
		if try == loadTries || before == s.entriesInode() {
			return err
		}
	}
}

// entriesInode tells the directories of entries apart; 0 for none.
func (s *Sysroot) entriesInode() uint64 {
	if s.boot == nil {
		return 0
	}
	var st unix.Stat_t
	f, err := s.boot.Open(entriesDir)
	if err != nil {
		return 0
	}
	defer f.Close()
	if unix.Fstat(int(f.Fd()), &st) != nil {
		return 0
	}
	return st.Ino
}

func (s *Sysroot) loadOnce() error {
	s.list, s.problems, s.mentioned = nil, nil, map[string]bool{}
	var err error
	if s.list, err = s.loadEntries(entriesDir); err != nil {
		return err
	}
	s.readCounters()
	if err := s.markBooted(); err != nil {
		return err
	}
	if err := s.loadStaged(); err != nil {
		return err
	}
	number(s.list)
	return nil
}

// readCounters takes over from a menu that is made from the entries what its loader
// counts.
func (s *Sysroot) readCounters() {
	if s.onLoader() {
		return
	}
	lines, problems, err := s.loader.Lines(s.owns)
	if err != nil {
		problems = append(problems, err)
	}
	for _, p := range problems {
		s.problem(p)
	}
	for _, d := range s.list {
		i := slices.IndexFunc(lines, func(l loader.Line) bool { return l.ID == d.lineID() })
		if i >= 0 {
			d.counter = lines[i].Counter
		}
	}
}

// number fills in what a deployment's place in the list says.
func number(list []*Deployment) {
	count := map[string]int{}
	for i := len(list) - 1; i >= 0; i-- {
		d := list[i]
		d.Index, d.Serial = i, count[d.Digest]
		count[d.Digest]++
	}
	for _, d := range list {
		d.SharesState = count[d.Digest] > 1
	}
}

// loadEntries reads the deployments of a directory of entries in the order of
// the boot menu.
func (s *Sysroot) loadEntries(dir string) ([]*Deployment, error) {
	if s.boot == nil {
		return nil, nil
	}
	entries, err := s.boot.OpenRoot(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer entries.Close()
	names, err := dirfd.ReadNames(entries, ".")
	if err != nil {
		return nil, err
	}
	var list []*Deployment
	for _, name := range names {
		if !strings.HasSuffix(name, ".conf") {
			continue
		}
		text, err := readSmall(entries, name)
		if err == nil {
			var d *Deployment
			if d, err = s.loadEntry(name, bls.Parse(string(text))); d != nil {
				list = append(list, d)
			}
		}
		if err != nil {
			err = fmt.Errorf("boot entry %s: %w", name, err)
			if fault.KindOf(err) != fault.Corrupt && !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
			// One broken entry must not keep the others from being listed.
			s.problem(err)
		}
	}
	slices.SortStableFunc(list, menuOrder)
	if s.onLoader() {
		// A writer that died may have left a line twice.
		var seen []*Deployment
		list = slices.DeleteFunc(list, func(d *Deployment) bool {
			twice := slices.ContainsFunc(seen, d.same)
			seen = append(seen, d)
			return twice
		})
	}
	return list, nil
}

// menuOrder is the order of the Boot Loader Specification, in which bootc reads
// entries too: those with a sort-key first, by it upwards, then version and file
// name downwards.
func menuOrder(a, b *Deployment) int {
	get := func(d *Deployment, key string) string {
		v, _ := d.Entry.Get(key)
		return v
	}
	ka, kb := get(a, "sort-key"), get(b, "sort-key")
	if (ka == "") != (kb == "") {
		return strings.Compare(kb, ka)
	}
	return cmp.Or(
		bls.CompareVersions(ka, kb),
		-bls.CompareVersions(get(a, "version"), get(b, "version")),
		-strings.Compare(a.entryFile, b.entryFile),
	)
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

// imageOf finds the image that an entry boots: by its composefs= argument, or
// for a unified kernel image by the name that bootc gives it. ok is false for
// an entry that is not of this backend.
func imageOf(e *bls.Entry) (digest string, optional bool, t BootType, ok bool) {
	if name, found := ukiOf(e); found {
		name, prefixed := strings.CutPrefix(path.Base(name), kernelPrefix)
		name, suffixed := strings.CutSuffix(name, uki.Suffix)
		return name, false, TypeUKI, prefixed && suffixed && digestForm.MatchString(name)
	}
	options, _ := e.Get("options")
	digest, optional, ok = ImageOf(karg.Parse(options))
	return digest, optional, TypeBLS, ok
}

// loadEntry returns the deployment of an entry; nil, nil for one of others.
func (s *Sysroot) loadEntry(name string, e *bls.Entry) (*Deployment, error) {
	if linux, ok := e.Get("linux"); ok {
		s.mentioned[path.Base(path.Dir(linux))] = true
	}
	if name, ok := ukiOf(e); ok {
		s.mentioned[kernelKey(name)] = true
	}
	digest, optional, kind, ok := imageOf(e)
	if !ok {
		return nil, nil
	}
	s.mentioned[digest] = true
	d := &Deployment{Digest: digest, VerityOptional: optional, Type: kind, Entry: e, entryFile: name}
	if err := s.complete(d); err != nil {
		return nil, err
	}
	if kind == TypeUKI {
		if err := s.readUKI(d); err != nil {
			s.problem(fmt.Errorf("deployment %s: %w", d.Digest, err))
		}
	}
	return d, nil
}

// complete fills in what the deployment's state directory tells.
func (s *Sysroot) complete(d *Deployment) error {
	if _, err := s.root.Stat(d.Dir()); err != nil {
		return fmt.Errorf("deployment %s: %w", d.Digest, err)
	}
	var err error
	d.Origin, err = s.readOrigin(d.OriginPath())
	if fault.KindOf(err) == fault.Corrupt {
		s.problem(fmt.Errorf("origin of %s: %w", d.Digest, err))
		return nil
	}
	return err
}

// readOrigin reads an origin; a missing one is empty.
func (s *Sysroot) readOrigin(name string) (*keyfile.File, error) {
	text, err := readSmall(s.root, name)
	if errors.Is(err, fs.ErrNotExist) {
		return &keyfile.File{}, nil
	}
	if err != nil {
		return &keyfile.File{}, err
	}
	origin, err := keyfile.Parse(string(text))
	if err != nil {
		return &keyfile.File{}, fault.New(fault.Corrupt, "", "%w", err)
	}
	return origin, nil
}

// readSmall reads a small regular file.
func readSmall(root *os.Root, name string) ([]byte, error) {
	return dirfd.ReadFile(root, name, maxEntry)
}
