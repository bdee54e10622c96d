package host

import (
	"context"
	"errors"
	"strings"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/layering"
)

// SearchPackages lists packages of the repositories, of the deployment that the
// next boot takes and of its /etc, whose name or summary has all of the words.
// With cacheOnly it asks nothing of the network.
func (h *Host) SearchPackages(ctx context.Context, words []string, cacheOnly bool) ([]v1.PackageFound, error) {
	list, err := h.searchPackages(ctx, words, cacheOnly)
	return list, wrap("pkg search", err)
}

func (h *Host) searchPackages(ctx context.Context, words []string, cacheOnly bool) (_ []v1.PackageFound, err error) {
	d, err := h.followed()
	if err != nil {
		return nil, err
	}
	unlock, err := h.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	etc, done, err := h.hostEtc(d)
	if err != nil {
		return nil, err
	}
	defer done()
	h.cfg.Progress.Step(v1.TaskImporting, "Reading the repositories")
	s, err := h.openPackages(ctx, layering.Base{}, d.root, layering.Options{HostEtc: etc, CacheOnly: cacheOnly})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	found, err := s.Search(ctx, words)
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, fault.New(fault.NotFound, "try a part of the name, or look whether the repository that has it is enabled", "no package has %q in its name or its summary", strings.Join(words, " "))
	}
	list := make([]v1.PackageFound, len(found))
	for i, f := range found {
		list[i] = v1.PackageFound{Name: f.Name, Version: f.Version, Arch: f.Arch, Repository: f.Repository, Size: f.Size, Summary: f.Summary, Installed: f.Installed}
	}
	return list, nil
}
