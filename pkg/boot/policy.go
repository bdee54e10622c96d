package boot

import (
	"context"
	"os"

	"github.com/kedge-os/kedge/pkg/boot/etcmerge"
	"github.com/kedge-os/kedge/pkg/boot/semodule"
)

// refreshPolicy rebuilds a deployment's SELinux policy after local changes to it
// were merged.
func (s *Sysroot) refreshPolicy(ctx context.Context, root *os.Root, changes []etcmerge.Change) error {
	if !semodule.Needed(changes) {
		return nil
	}
	return semodule.Refresh(ctx, root, s.log)
}
