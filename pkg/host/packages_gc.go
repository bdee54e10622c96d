package host

import (
	"errors"
	"io/fs"
	"path"
	"strings"

	"github.com/kedge-os/kedge/pkg/layering"
)

// sweepPackages removes images with packages that no deployment was made from,
// and package files that none of their locks names. Where no deployment has
// packages, everything goes.
func (h *Host) sweepPackages(list deployments) error {
	dir := path.Join(h.store.StateDir(), packagesDir)
	if _, err := h.root.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	digests, sums, any := map[string]bool{}, map[string]bool{}, false
	for _, d := range list {
		any = any || d.origin.record != nil
		for _, f := range d.origin.wants.local() {
			sums[f.sum] = true
		}
		if r, err := recordOf(d); err == nil && r != nil {
			digests[d.image.digest] = true
			for _, p := range r.Lock.Install {
				_, sum, _ := strings.Cut(p.Checksum, ":")
				sums[sum] = true
			}
		}
	}
	if !any {
		return h.root.RemoveAll(dir)
	}
	images, err := h.localImages()
	if err != nil {
		return err
	}
	defer images.Root.Close()
	stored, err := images.Images()
	if err != nil {
		return err
	}
	var keep []string
	for _, s := range stored {
		if digests[s.ManifestDigest] {
			keep = append(keep, s.Name)
		}
	}
	if len(stored) > 0 {
		if err := images.Keep(keep); err != nil {
			return err
		}
	}
	return h.dropPackageFiles(path.Join(dir, "cache/packages"), sums)
}

func (h *Host) dropPackageFiles(dir string, keep map[string]bool) error {
	entries, err := fs.ReadDir(h.root.FS(), dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		sum, _, _ := strings.Cut(e.Name(), ".")
		if keep[sum] {
			continue
		}
		if err := h.root.Remove(path.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// sweepSessions removes what was under way when a program was killed. The lock
// is held, so nothing else is under way.
func (h *Host) sweepSessions() error { return layering.Sweep(h.packageDir("work")) }
