package boot

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"

	"github.com/kedge-os/kedge/pkg/boot/bls"
	"github.com/kedge-os/kedge/pkg/boot/karg"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/ostree/object"
)

// The staged deployment's marker: libostree's a{sv}, and a file whose presence
// told older versions that finalisation is locked.
const (
	markerFile = "run/ostree/staged-deployment"
	lockedFile = "run/ostree/staged-deployment-locked"
)

// Keys of the marker. Those that begin with kedge are ours: libostree carries
// keys that it does not know along. kedgeKey holds the time at which the first
// merge of /etc began, in Unix nanoseconds.
const (
	targetKey = "target"
	mergeKey  = "merge-deployment"
	kargsKey  = "kargs"
	initrdKey = "overlay-initrds"
	lockedKey = "locked"
	extrasKey = "bootconfig-extra"
	kedgeKey  = "kedge.staged"
	holdKey   = "kedge.hold"
	retainKey = "kedge.retain"
)

// readMarker returns the marker, nil where nothing is staged.
func (s *Sysroot) readMarker() (object.Dict, error) {
	data, err := s.host.ReadFile(markerFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	marker, err := object.DecodeDict(data)
	if err != nil {
		return nil, fault.New(fault.Corrupt, "remove the file: what was staged is lost, nothing else", "read /%s: %w", markerFile, err)
	}
	return marker, nil
}

// loadStaged puts the staged deployment before all others.
func (s *Sysroot) loadStaged() error {
	if s.booted == nil {
		return nil
	}
	marker, err := s.readMarker()
	if err != nil || marker == nil {
		return err
	}
	target, ok := marker.Dict(targetKey)
	if !ok {
		return nil
	}
	d, err := decodeRef(target)
	if err != nil {
		return err
	}
	if s.first(d.same) != nil {
		// A finalisation was killed between its commit and the removal of the
		// marker: the deployment is the default already.
		return nil
	}
	d.Staged = true
	d.FinalizationLocked, _ = marker.Bool(lockedKey)
	if _, err := s.host.Lstat(lockedFile); err == nil {
		d.FinalizationLocked = true
	}
	_, d.Ours = marker.Get(kedgeKey)
	d.Held, _ = marker.Bool(holdKey)
	d.Entry = &bls.Entry{}
	args, ok := marker.Texts(kargsKey)
	options := karg.Args(args).String()
	if merge := s.markerMerge(marker); !ok && merge != nil {
		options, _ = merge.Entry.Get("options")
	}
	d.Entry.Set("options", options)
	extra, _ := marker.Map(extrasKey)
	for _, k := range slices.Sorted(maps.Keys(extra)) {
		d.Entry.Set(k, extra[k])
	}
	if err := s.complete(d); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			s.problem(fmt.Errorf("the staged deployment is gone: %w", err))
			return nil
		}
		return err
	}
	s.list = append([]*Deployment{d}, s.list...)
	return nil
}

// markerMerge returns the deployment that the staged one continues, nil where
// the marker names none or it is not in the list.
func (s *Sysroot) markerMerge(marker object.Dict) *Deployment {
	v, ok := marker.Dict(mergeKey)
	if !ok {
		return nil
	}
	merge, err := decodeRef(v)
	if err != nil {
		return nil
	}
	return s.first(merge.same)
}

// encodeRef and decodeRef are a deployment in the marker.
func encodeRef(d *Deployment) object.Variant {
	return object.Nested(object.Dict{
		{Key: "name", Value: object.Text(d.Name())},
		{Key: "osname", Value: object.Text(d.Stateroot)},
		{Key: "bootcsum", Value: object.Text(d.Bootcsum)},
	})
}

func decodeRef(v object.Dict) (*Deployment, error) {
	name, _ := v.Text("name")
	stateroot, _ := v.Text("osname")
	bootcsum, _ := v.Text("bootcsum")
	checksum, serial, ok := parseDeployName(name)
	if !ok || CheckStateroot(stateroot) != nil || path.Base(bootcsum) != bootcsum {
		return nil, fault.New(fault.Corrupt, "remove the file: what was staged is lost, nothing else",
			"/%s names no deployment: name=%q osname=%q bootcsum=%q", markerFile, name, stateroot, bootcsum)
	}
	return &Deployment{Stateroot: stateroot, Checksum: checksum, Serial: serial, Bootcsum: bootcsum, BootSerial: -1}, nil
}

// dropStaged removes the marker, then the deployment.
func (s *Sysroot) dropStaged(d *Deployment) error {
	if err := s.removeMarker(); err != nil {
		return err
	}
	return s.removeDeployment(d)
}

func (s *Sysroot) removeMarker() error {
	for _, name := range []string{markerFile, lockedFile} {
		if err := s.removeRun(name); err != nil {
			return err
		}
	}
	return nil
}
