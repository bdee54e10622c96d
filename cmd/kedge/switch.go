package main

import (
	"context"

	"github.com/urfave/cli/v2"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/host"
)

type switchOptions struct {
	host.SwitchOptions
	Apply bool
}

func (o *switchOptions) AddFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "transport", Usage: "read IMAGE with `TRANSPORT`: registry, oci, oci-archive, dir or containers-storage", Destination: &o.Transport},
		&cli.BoolFlag{Name: "apply", Usage: "reboot into the new image when it is staged", Destination: &o.Apply},
		&cli.BoolFlag{Name: "retain", Usage: "keep the current image's deployment as a pinned one", Destination: &o.Retain},
		&cli.BoolFlag{Name: "download-only", Usage: "stage, but do not boot it before `kedge upgrade --from-downloaded`", Destination: &o.DownloadOnly},
		&cli.BoolFlag{Name: "enforce-sigpolicy", Usage: "demand that policy.json asks for a signature, from here on", Destination: &o.EnforceSigpolicy},
		&cli.BoolFlag{Name: "allow-missing-verity", Usage: "accept a file system without fs-verity, and record that", Destination: &o.AllowMissingVerity},
	}
}

func cmdSwitch(e *env) *cli.Command {
	var opts switchOptions
	return &cli.Command{
		Name:      "switch",
		Usage:     "move this host to another image",
		ArgsUsage: "IMAGE",
		Description: "Fetches IMAGE and makes it what the next boot takes; upgrades follow it from then on.\n" +
			"Kernel arguments, /etc and /var are kept. On a booted host the change is staged and\n" +
			"takes effect at shutdown; an offline --sysroot is changed at once.\n\n" +
			"IMAGE is [docker://]REGISTRY/NAME[:TAG|@DIGEST], oci:DIR[:TAG], oci-archive:FILE, dir:DIR\n" +
			"or containers-storage:NAME.",
		UsageText: "kedge switch registry.example/os:stable --apply",
		Flags:     opts.AddFlags(),
		Action: func(c *cli.Context) error {
			image, err := oneOperand(c, "IMAGE")
			if err != nil {
				return err
			}
			opts.Image = image
			return runSwitch(c.Context, e, opts)
		},
	}
}

func runSwitch(ctx context.Context, e *env, opts switchOptions) error {
	return e.change(ctx, opts.Apply, func(ctx context.Context, h *host.Host) (*v1.Result, error) {
		return h.Switch(ctx, opts.SwitchOptions)
	})
}
