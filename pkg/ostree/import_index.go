package ostree

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// Layer indexes are kept in layers/sha256-<diffID> of kedge's state directory.
// They carry their own checksum: one that a power cut tore counts as absent, so
// that none needs a sync of its own.
const (
	layersDir  = "layers"
	unfinished = "new-"
)

// indexUpdate writes layer indexes beside the old ones and moves them into
// place when the layers are in the repository.
type indexUpdate struct {
	state *os.Root
	names []string
}

// add writes a layer's file with the index that another one has.
func (u *indexUpdate) add(diffID string, l *savedLayer, index *savedIndex, r recordList) (err error) {
	name, err := layerFileName(diffID)
	if err != nil {
		return err
	}
	u.names = append(u.names, name)
	f, err := u.state.OpenFile(layersDir+"/"+unfinished+name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err == nil {
		err = errors.Join(l.write(f, index, index.size, r), f.Close())
	}
	if err != nil {
		return fmt.Errorf("save the index of layer %s: %w", diffID, err)
	}
	return nil
}

func (u *indexUpdate) commit() error {
	var errs []error
	for _, name := range u.names {
		if err := u.state.Rename(layersDir+"/"+unfinished+name, layersDir+"/"+name); err != nil {
			errs = append(errs, fmt.Errorf("save the index of a layer: %w", err))
		}
	}
	u.names = nil
	return errors.Join(errs...)
}

func (u *indexUpdate) abort() {
	for _, name := range u.names {
		_ = u.state.Remove(layersDir + "/" + unfinished + name)
	}
	u.names = nil
}

// removeUnfinished removes what a killed import left.
func removeUnfinished(state *os.Root) error {
	names, err := indexNames(state)
	if err != nil {
		return err
	}
	for _, name := range names {
		if strings.HasPrefix(name, unfinished) {
			if err := state.Remove(layersDir + "/" + name); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("remove an unfinished layer index: %w", err)
			}
		}
	}
	return nil
}

func indexNames(state *os.Root) ([]string, error) {
	d, err := state.Open(layersDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the layer indexes: %w", err)
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("list the layer indexes: %w", err)
	}
	return names, nil
}
