package main

import (
	"context"

	"github.com/urfave/cli/v2"

	"github.com/kedge-os/kedge/pkg/host"
)

func cmdCleanup(e *env) *cli.Command {
	var opts host.CleanupOptions
	return &cli.Command{
		Name:  "cleanup",
		Usage: "remove what nothing needs any more",
		Description: "Removes left-overs of interrupted runs, objects that no deployment and no image needs,\n" +
			"and kernels without a boot entry. The booted, the next and pinned deployments stay.",
		UsageText: "kedge cleanup --rollback",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "rollback", Usage: "remove the deployment that rollback would lead to, too", Destination: &opts.Rollback},
			&cli.BoolFlag{Name: "staged", Usage: "discard the staged deployment, too", Destination: &opts.Staged},
		},
		Action: withoutOperands(func(c *cli.Context) error { return runCleanup(c.Context, e, opts) }),
	}
}

func runCleanup(ctx context.Context, e *env, opts host.CleanupOptions) error {
	h, err := e.open(ctx, true)
	if err != nil {
		return err
	}
	defer h.Close()
	r, err := h.Cleanup(ctx, opts)
	if err != nil {
		return err
	}
	if e.json {
		return e.printJSON(r)
	}
	for _, id := range r.Deployments {
		if err := e.printf("Removed deployment %s\n", id); err != nil {
			return err
		}
	}
	return e.printf("Removed %s (%s)\n", count(r.Objects, "object"), size(r.Bytes))
}
