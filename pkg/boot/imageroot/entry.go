package imageroot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/kedge-os/kedge/internal/dirfd"
	"github.com/kedge-os/kedge/pkg/boot/bls"
	"github.com/kedge-os/kedge/pkg/boot/osrelease"
	"github.com/kedge-os/kedge/pkg/boot/source"
	"github.com/kedge-os/kedge/pkg/fault"
)

// Directories of entries. bootc reads the first two; the last is filled for
// Write's exchange and gone after it.
const (
	loaderDir  = "loader"
	entriesDir = loaderDir + "/entries"
	stagedDir  = loaderDir + "/entries.staged"
	nextDir    = loaderDir + "/entries.kedge"
)

// entryOrder is the order in which bootc writes the keys of an entry.
var entryOrder = []string{"title", "version", "efi", "uki", "linux", "initrd", "options", "machine-id", "sort-key"}

// defaultID stands for an image whose os-release has none, as with bootc.
const defaultID = "bootc"

// sortKeyPrefix begins the sort-keys: bootc-ID-N.
const sortKeyPrefix = "bootc-"

// describe fills in what the entry and the origin of a new deployment say of
// its image.
func (s *Sysroot) describe(d *Deployment, image *source.Image, k *kernel) error {
	text, err := image.ReadFile("usr/lib/os-release")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read the image's os-release: %w", err)
	}
	release := osrelease.Parse(string(text))
	get := func(def string, keys ...string) string {
		for _, key := range keys {
			if v := release[key]; v != "" {
				// A line break would begin another key of the entry.
				return strings.NewReplacer("\n", " ", "\r", " ").Replace(v)
			}
		}
		return def
	}
	d.Entry.Set("title", get(d.Digest, "PRETTY_NAME", "NAME", "ID"))
	d.Entry.Set("version", get(d.Digest, "VERSION_ID", "VERSION"))
	d.Entry.Set("sort-key", sortKeyPrefix+get(defaultID, "ID")+"-0")
	d.Origin.Set(bootGroup, bootTypeKey, string(d.Type))
	digest, err := k.digest()
	if err != nil {
		return err
	}
	d.Origin.Set(bootGroup, bootDigestKey, digest)
	return s.nameKernel(d, k)
}

// idOf returns the os-release ID that an entry's sort-key holds.
func idOf(e *bls.Entry) string {
	key, _ := e.Get("sort-key")
	id, ok := strings.CutPrefix(key, sortKeyPrefix)
	if i := strings.LastIndexByte(id, '-'); ok && i > 0 {
		return id[:i]
	}
	return defaultID
}

// position is the names by which boot loaders order the i-th of n entries.
//
// bootc makes two entries: bootc_ID-VERSION-1.conf with the sort-key bootc-ID-0
// for the default, and bootc_ID-VERSION-0.conf with bootc-ID-1 for the other.
// systemd-boot goes by the sort-key upwards. GRUB goes by the file name, taken
// apart like a package's at its last two dashes, downwards by name, version and
// release; bootc goes by the one or the other, whichever the machine has.
// Entries beyond two continue both rows: of three the releases are 2, 1, 0 and
// the sort-keys 0, 1, 2. bootc reads them and shows them as the rollback and
// other deployments, its collector keeps what they name, and its own rollback
// refuses to work with more than two.
//
// All entries have ID and VERSION of the default in these names, where bootc
// gives each its own VERSION: GRUB would boot the newest version whatever is
// the default. Nothing reads ID or VERSION back from a name.
type position struct{ i, n int }

func (p position) release() string {
	top := max(p.n-1, 1)
	return fmt.Sprintf("%0*d", len(fmt.Sprint(top)), top-p.i)
}

func (p position) sortKey(id string) string {
	return fmt.Sprintf("%s%s-%0*d", sortKeyPrefix, id, len(fmt.Sprint(max(p.n-1, 1))), p.i)
}

// maxNamePart bounds ID and VERSION in a file name.
const maxNamePart = 100

// nameSafe makes a value fit for the file name of an entry. A "+" would begin a
// boot counter.
func nameSafe(v string, dash bool) string {
	v = strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '.', r == '_', r == '-' && dash:
			return r
		}
		return '_'
	}, v)
	return v[:min(len(v), maxNamePart)]
}

// base returns the name of an entry's file, in a list whose default is first,
// without counter and suffix.
func (p position) base(first *Deployment) string {
	version, _ := first.Entry.Get("version")
	return fmt.Sprintf("bootc_%s-%s-%s", nameSafe(idOf(first.Entry), false), nameSafe(version, true), p.release())
}

// file returns the file name of the entry of d. An entry that boot loaders count
// keeps its counter.
func (p position) file(d, first *Deployment) string {
	counter := ""
	if name, ok := bls.ParseName(d.entryFile); ok && name.Counter != nil {
		counter = fmt.Sprintf("+%d-%d", name.Counter.Left, name.Counter.Done)
	}
	return p.base(first) + counter + ".conf"
}

// encode makes the files of a list of entries.
func encode(list []*Deployment) map[string][]byte {
	files := make(map[string][]byte, len(list))
	for i, d := range list {
		p := position{i, len(list)}
		e := d.Entry.Clone()
		e.Set("sort-key", p.sortKey(idOf(list[0].Entry)))
		files[p.file(d, list[0])] = e.EncodeIn(entryOrder)
	}
	return files
}

// fillEntries makes dir with the entries of a list and those of others that
// are in use. changed is false where the directory in use has the same.
func (s *Sysroot) fillEntries(dir string, list []*Deployment) (changed bool, err error) {
	boot, err := s.bootDir()
	if err != nil {
		return false, err
	}
	have, others, err := s.readEntries()
	if err != nil {
		return false, fmt.Errorf("read the boot entries in use: %w", err)
	}
	files := encode(list)
	for name, text := range have {
		_, _, _, ours := imageOf(bls.Parse(string(text)))
		if _, taken := files[name]; !taken && (!ours || !strings.HasSuffix(name, ".conf")) {
			files[name] = text
		}
	}
	changed = len(files) != len(have)
	for name, text := range files {
		changed = changed || string(have[name]) != string(text)
	}
	if err := boot.RemoveAll(dir); err != nil {
		return false, err
	}
	if err := boot.MkdirAll(dir, 0o755); err != nil {
		return false, err
	}
	for name, text := range files {
		if err := s.writeSynced(path.Join(dir, name), text); err != nil {
			return false, fmt.Errorf("write the boot entry %s: %w", name, err)
		}
	}
	if s.onLoader() {
		return changed, nil // nothing replaces the directory in use there
	}
	if err := s.carry(dir, others); err != nil {
		return false, fmt.Errorf("carry over the boot entries of others: %w", err)
	}
	return changed, nil
}

// carry copies what stands among the entries in use and is no entry to dir.
func (s *Sysroot) carry(dir string, names []string) error {
	if len(names) == 0 {
		return nil
	}
	from, err := dirfd.Open(s.boot, entriesDir)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := dirfd.Open(s.boot, dir)
	if err != nil {
		return err
	}
	defer to.Close()
	for _, n := range names {
		if err := to.CopyAny(from, n); err != nil {
			return err
		}
	}
	return nil
}

func (s *Sysroot) writeSynced(name string, text []byte) error {
	f, err := s.boot.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	if _, err = f.Write(text); err == nil && !s.opts.NoSync {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// readEntries returns the files of the directory of entries in use, and the names of
// what can be none: directories, files that are too large, symlinks that lead out.
func (s *Sysroot) readEntries() (files map[string][]byte, others []string, err error) {
	files = map[string][]byte{}
	names, err := dirfd.ReadNames(s.boot, entriesDir)
	if errors.Is(err, fs.ErrNotExist) {
		return files, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	for _, n := range names {
		text, err := readSmall(s.boot, path.Join(entriesDir, n))
		switch {
		case fault.KindOf(err) == fault.Corrupt, errors.Is(err, fs.ErrNotExist):
			others = append(others, n)
		case err != nil:
			return nil, nil, err
		default:
			files[n] = text
		}
	}
	return files, others, nil
}
