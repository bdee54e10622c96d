package main

import (
	"context"
	"fmt"

	"github.com/urfave/cli/v2"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/host"
)

func cmdUsrOverlay(e *env) *cli.Command {
	var readOnly bool
	return &cli.Command{
		Name:  "usroverlay",
		Usage: "make /usr writable until the reboot",
		Description: "Mounts an overlay on /usr. What is written there is gone with the reboot; the root itself is\n" +
			"not changed, and status shows the overlay.",
		UsageText: "kedge usroverlay",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "read-only", Usage: "for programs that mount it writable for themselves", Destination: &readOnly},
		},
		Action: withoutOperands(func(c *cli.Context) error { return runUsrOverlay(c.Context, e, readOnly) }),
	}
}

// runUsrOverlay opens the host to read it: one that is opened for writing has
// mounts of its own, and the overlay is for the whole machine.
func runUsrOverlay(ctx context.Context, e *env, readOnly bool) error {
	overlay := func(h *host.Host, ctx context.Context) (*v1.UsrOverlay, error) { return h.UsrOverlay(ctx, readOnly) }
	return show(ctx, e, false, overlay, func(o *v1.UsrOverlay) string {
		return fmt.Sprintf("/usr has an overlay (%s). What is written there is gone with the reboot.\n", o.AccessMode)
	})
}
