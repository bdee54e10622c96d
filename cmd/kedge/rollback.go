package main

import (
	"context"

	"github.com/urfave/cli/v2"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/host"
)

func cmdRollback(e *env) *cli.Command {
	var apply bool
	return &cli.Command{
		Name:  "rollback",
		Usage: "make the previous deployment what the next boot takes",
		Description: "Swaps the first two deployments in boot order; run again, it swaps them back. The\n" +
			"deployment that comes back has its own /etc and its own origin, so upgrades follow what\n" +
			"it followed. /var is shared and stays as it is. A staged deployment is discarded.",
		UsageText: "kedge rollback --apply",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "apply", Usage: "reboot into it", Destination: &apply},
		},
		Action: func(c *cli.Context) error {
			if err := noOperands(c); err != nil {
				return err
			}
			return runRollback(c.Context, e, apply)
		},
	}
}

func runRollback(ctx context.Context, e *env, apply bool) error {
	return e.change(ctx, apply, func(ctx context.Context, h *host.Host) (*v1.Result, error) {
		return h.Rollback(ctx)
	})
}
