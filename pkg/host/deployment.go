package host

import (
	"os"
	"slices"
	"time"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/boot/bls"
	"github.com/kedge-os/kedge/pkg/boot/etcmerge"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/ocibridge"
)

// deployment is a root that boots, as every store has it.
type deployment struct {
	id        string
	key       string // as id, and stays the same as long as the deployment is there
	index     int
	root      string // what the store calls the root: of ostree, the commit
	stateroot string
	serial    int

	booted       bool
	staged       bool
	foreign      bool // staged by another program
	downloadOnly bool // staged, and not to be finalised
	pinned       bool

	origin   origin
	manifest string     // digest of the image; "" for no container image
	image    *imageInfo // nil: none, or it cannot be read
	update   *imageInfo // newer image that a check found, or nil
	kargs    []string
	kernel   string // tells kernels in /boot apart
	// signedHere: it is a unified kernel image that was made and signed on this host.
	signedHere bool
	made       time.Time // or when its origin was changed last
	// counter is how often a boot loader tried it and will; nil: not counted.
	counter *bls.Counter

	// etcChanges are what the merge of /etc found; known only of what Deploy
	// returns.
	etcChanges []etcmerge.Change
	// droppedPCRs: its unified kernel image lacks the signatures of PCR values that
	// its image's has; known as etcChanges.
	droppedPCRs bool
}

// origin is what was asked for.
type origin struct {
	text string // container-image-reference as it stands there
	ref  *ocibridge.Reference
	// hotfix: libostree keeps an overlay on its /usr over reboots.
	hotfix bool
	// userKargs are the kernel arguments that kedge kargs has set.
	userKargs []string
	// refspec is what a host without container images follows.
	refspec string
	// incompatible says that there are groups bootc does not understand, and
	// changes what they ask for; they may ask for nothing.
	incompatible bool
	changes      []string
	packages     *v1.Packages
	wants        packageIntent
	record       *packageRecord // of kedge; nil: none
}

// deployments is the boot menu: what boots next comes first, a staged one
// before all.
type deployments []*deployment

func (l deployments) find(match func(*deployment) bool) *deployment {
	if i := slices.IndexFunc(l, match); i >= 0 {
		return l[i]
	}
	return nil
}

func (l deployments) booted() *deployment {
	return l.find(func(d *deployment) bool { return d.booted })
}

func (l deployments) staged() *deployment {
	return l.find(func(d *deployment) bool { return d.staged })
}

// next returns what the next boot takes; nil where nothing is deployed.
func (l deployments) next() *deployment {
	return l.find(func(d *deployment) bool { return !d.downloadOnly })
}

// followed returns the deployment whose intent an operation continues: what is
// staged was asked for last; else what runs, even where a rollback is queued;
// on a sysroot that is not booted, the default.
func (l deployments) followed() *deployment {
	for _, d := range []*deployment{l.staged(), l.booted()} {
		if d != nil {
			return d
		}
	}
	return l.next()
}

// rollback returns where a rollback leads: the first deployment, in boot order,
// of the same stateroot that is neither staged nor the current one. Where it
// comes before the booted one, a rollback is queued.
func (l deployments) rollback() *deployment {
	current := l.current()
	if current == nil {
		return nil
	}
	return l.find(func(d *deployment) bool { return !d.staged && d != current && d.stateroot == current.stateroot })
}

// current returns what runs, or on a sysroot that is not booted would run.
func (l deployments) current() *deployment {
	if b := l.booted(); b != nil {
		return b
	}
	return l.find(func(d *deployment) bool { return !d.staged })
}

func (l deployments) at(index int) (*deployment, error) {
	if d := l.find(func(d *deployment) bool { return d.index == index }); d != nil {
		return d, nil
	}
	return nil, fault.New(fault.NotFound, "kedge status shows the index of each deployment", "there is no deployment with index %d", index)
}

// status returns the image as the API has it; nil where there is none.
func (d *deployment) status() *v1.ImageStatus {
	if d.image == nil || d.origin.ref == nil {
		return nil
	}
	s := d.image.status(*d.origin.ref)
	s.ImageDigest = d.imageDigest()
	return s
}

// imageDigest returns the digest of the image that the deployment follows: of the
// base where packages were put on it.
func (d *deployment) imageDigest() string {
	if d.origin.record != nil {
		return d.origin.record.base
	}
	return d.manifest
}

// degraded reports whether something is missing that was asked for.
func (d *deployment) degraded() bool {
	return d.origin.record != nil && len(d.origin.record.leftOut) > 0
}

// modified returns when a file was written last; zero where that is not known.
func modified(root *os.Root, name string) time.Time {
	st, err := root.Stat(name)
	if err != nil {
		return time.Time{}
	}
	return st.ModTime()
}
