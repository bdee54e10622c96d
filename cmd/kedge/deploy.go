package main

import (
	"context"

	"github.com/urfave/cli/v2"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/host"
)

func cmdDeploy(e *env) *cli.Command {
	var apply bool
	return &cli.Command{
		Name:      "deploy",
		Usage:     "go to a certain digest, version or kept deployment",
		ArgsUsage: "DIGEST|VERSION|INDEX",
		Description: "INDEX is a deployment as status numbers them, VERSION the version label of one; either\n" +
			"becomes what the next boot takes without a download. DIGEST (sha256:…) is taken from a\n" +
			"kept deployment, else fetched from the repository that this host follows; the host goes\n" +
			"on following its tag.",
		UsageText: "kedge deploy 42.20261101.0",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "apply", Usage: "reboot into it", Destination: &apply},
		},
		Action: func(c *cli.Context) error {
			target, err := oneOperand(c, "DIGEST, VERSION or INDEX")
			if err != nil {
				return err
			}
			return runDeploy(c.Context, e, target, apply)
		},
	}
}

func runDeploy(ctx context.Context, e *env, target string, apply bool) error {
	return e.change(ctx, apply, func(ctx context.Context, h *host.Host) (*v1.Result, error) {
		return h.Deploy(ctx, target)
	})
}
