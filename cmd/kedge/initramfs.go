package main

import (
	"context"

	"github.com/urfave/cli/v2"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/host"
)

type initramfsOptions struct {
	Regenerate, Stock bool
	Args              cli.StringSlice
	changeOptions
}

func (o *initramfsOptions) AddFlags() []cli.Flag {
	return append([]cli.Flag{
		&cli.BoolFlag{Name: "regenerate", Aliases: []string{"enable"}, Usage: "make the initramfs on this host, now and for every later image", Destination: &o.Regenerate},
		&cli.StringSliceFlag{Name: "arg", Usage: "with --regenerate, give dracut `ARGUMENT` too; once for each", Destination: &o.Args},
		&cli.BoolFlag{Name: "stock", Aliases: []string{"disable"}, Usage: "take the image's own initramfs again", Destination: &o.Stock},
	}, o.changeOptions.AddFlags()...)
}

func cmdInitramfs(e *env) *cli.Command {
	var opts initramfsOptions
	return &cli.Command{
		Name: "initramfs", Usage: "have the initramfs made on this host, or take the image's own",
		Description: "The image's dracut makes it, with the dracut modules of the image's own initramfs, in the sandbox of\n" +
			"`kedge pkg`: it sees the image's files and /etc, nothing of this host. kedge status shows what a\n" +
			"deployment has. A change makes a new deployment; rollback leads back.",
		UsageText: "kedge initramfs --regenerate --arg=--add-drivers --arg=\"nvme vfio-pci\"",
		Flags:     opts.AddFlags(),
		Action:    withoutOperands(func(c *cli.Context) error { return runInitramfs(c.Context, e, opts) }),
	}
}

func runInitramfs(ctx context.Context, e *env, opts initramfsOptions) error {
	args := opts.Args.Value()
	switch {
	case opts.Regenerate == opts.Stock:
		return fault.New(fault.Usage, "kedge status shows which one a deployment has", "initramfs: give either --regenerate or --stock")
	case opts.Stock && len(args) > 0:
		return fault.New(fault.Usage, "give --regenerate with it", "initramfs: --arg is for dracut, which --stock does not run")
	}
	return opts.change(ctx, e, func(ctx context.Context, h *host.Host) (*v1.Result, error) {
		return h.ChangeInitramfs(ctx, host.InitramfsOptions{Regenerate: opts.Regenerate, Args: args})
	})
}
