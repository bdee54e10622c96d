package main

import (
	"context"

	"github.com/urfave/cli/v2"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/host"
)

func cmdRollback(e *env) *cli.Command {
	var apply, mergeEtc bool
	return &cli.Command{
		Name:  "rollback",
		Usage: "make the previous deployment what the next boot takes",
		Description: "Swaps the first two deployments in boot order; run again, it swaps them back. The\n" +
			"deployment that comes back has its own /etc and its own origin, so upgrades follow what\n" +
			"it followed. /var is shared and stays as it is. A staged deployment is discarded.\n" +
			"With --merge-etc the changes that were made in /etc since go along: the previous root is\n" +
			"deployed anew, with its kernel arguments and origin, and the current /etc is merged into its\n" +
			"defaults. On a host that runs it is staged, and the shutdown puts it in place.",
		UsageText: "kedge rollback --apply",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "apply", Usage: "reboot into it", Destination: &apply},
			&cli.BoolFlag{Name: "merge-etc", Usage: "take the current /etc along", Destination: &mergeEtc},
		},
		Action: withoutOperands(func(c *cli.Context) error { return runRollback(c.Context, e, apply, mergeEtc) }),
	}
}

func runRollback(ctx context.Context, e *env, apply, mergeEtc bool) error {
	return e.change(ctx, apply, func(ctx context.Context, h *host.Host) (*v1.Result, error) {
		if mergeEtc {
			return h.RollbackMergeEtc(ctx)
		}
		return h.Rollback(ctx)
	})
}
