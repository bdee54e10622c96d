package host

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/kedge-os/kedge/pkg/boot/stamp"
	"github.com/kedge-os/kedge/pkg/fault"
)

// menu is the part of a store that changes its sysroot's list of deployments
// and nothing else; D is the sysroot's own type of them.
type menu[D comparable] struct {
	list interface {
		Deployments() []D
		Write(ctx context.Context, list []D) error
		WithDefault(d D) []D
		SetPinned(d D, pinned bool) error
		SetHold(hold bool) error
		Retain(keep func(D) bool)
		Failure() (*stamp.Failure, error)
	}
	is    func(D, *deployment) bool
	begin func() error // announces a change
}

// native returns the sysroot's value for a deployment.
func (m *menu[D]) native(d *deployment) (D, error) {
	list := m.list.Deployments()
	if i := slices.IndexFunc(list, func(b D) bool { return m.is(b, d) }); i >= 0 {
		return list[i], nil
	}
	var none D
	return none, fault.New(fault.NotFound, "kedge status shows what there is", "the deployment %s is gone", d.id)
}

// SetDefault implements store. The commit point is that of the sysroot's Write.
func (m *menu[D]) SetDefault(ctx context.Context, d *deployment) error {
	b, err := m.native(d)
	if err != nil {
		return err
	}
	if err := m.begin(); err != nil {
		return err
	}
	return m.list.Write(ctx, m.list.WithDefault(b))
}

// Remove implements store. The commit point is that of the sysroot's Write.
func (m *menu[D]) Remove(ctx context.Context, gone ...*deployment) error {
	list := m.list.Deployments()
	for _, d := range gone {
		b, err := m.native(d)
		if err != nil {
			return err
		}
		list = slices.DeleteFunc(list, func(o D) bool { return o == b })
	}
	if err := m.begin(); err != nil {
		return err
	}
	return m.list.Write(ctx, list)
}

// Retain implements store.
func (m *menu[D]) Retain(list deployments) {
	m.list.Retain(func(b D) bool { return slices.ContainsFunc(list, func(d *deployment) bool { return m.is(b, d) }) })
}

// SetPinned implements store.
func (m *menu[D]) SetPinned(d *deployment, pinned bool) error {
	b, err := m.native(d)
	if err != nil {
		return err
	}
	return m.list.SetPinned(b, pinned)
}

// Release implements store.
func (m *menu[D]) Release() error { return m.list.SetHold(false) }

// FinalizeFailure implements store.
func (m *menu[D]) FinalizeFailure() string {
	f, err := m.list.Failure()
	switch {
	case err != nil:
		return err.Error()
	case f == nil:
		return ""
	}
	return fmt.Sprintf("%s: %s", f.Time.UTC().Format(time.DateTime), f.Message)
}
