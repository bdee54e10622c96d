package main

import (
	"context"
	"fmt"
	"os"

	"github.com/urfave/cli/v2"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/host"
)

type upgradeOptions struct {
	host.UpgradeOptions
	Check       bool
	Apply       bool
	Unchanged77 bool
}

func (o *upgradeOptions) AddFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "check", Usage: "only say whether there is a newer image; fetches no layer", Destination: &o.Check},
		&cli.BoolFlag{Name: "apply", Usage: "reboot into the new image when it is staged", Destination: &o.Apply},
		&cli.BoolFlag{Name: "download-only", Usage: "stage, but do not boot it before --from-downloaded", Destination: &o.DownloadOnly},
		&cli.BoolFlag{Name: "from-downloaded", Usage: "let the next reboot take what --download-only staged; no network", Destination: &o.FromDownloaded},
		&cli.StringFlag{Name: "tag", Usage: "follow tag `T` of the same repository from here on", Destination: &o.Tag},
		&cli.BoolFlag{Name: "allow-missing-verity", Usage: "accept a file system without fs-verity, and record that", Destination: &o.AllowMissingVerity},
		&cli.BoolFlag{Name: "unchanged-exit-77", Usage: "exit with 77 where nothing changed", Destination: &o.Unchanged77},
	}
}

func cmdUpgrade(e *env) *cli.Command {
	var opts upgradeOptions
	return &cli.Command{
		Name:    "upgrade",
		Aliases: []string{"update"},
		Usage:   "move to the newest digest of the image this host follows",
		Description: "Asks the image's source for the digest behind the reference in the origin. Where it is\n" +
			"another one than that of the staged or booted deployment, the image is fetched and made\n" +
			"what the next boot takes, as switch does.",
		UsageText: "kedge upgrade --check",
		Flags:     opts.AddFlags(),
		Action:    withoutOperands(func(c *cli.Context) error { return runUpgrade(c.Context, e, opts) }),
	}
}

func runUpgrade(ctx context.Context, e *env, opts upgradeOptions) error {
	if opts.Check && (opts.Apply || opts.DownloadOnly || opts.FromDownloaded) {
		return fault.New(fault.Usage, "--check changes nothing: leave the other flag out", "upgrade: --check with --apply, --download-only or --from-downloaded")
	}
	if opts.FromDownloaded && (opts.DownloadOnly || opts.Tag != "") {
		return fault.New(fault.Usage, "--from-downloaded takes what is staged: leave the other flag out", "upgrade: --from-downloaded with --download-only or --tag")
	}
	if opts.Check {
		return runUpgradeCheck(ctx, e, opts)
	}
	var result *v1.Result
	err := e.change(ctx, opts.Apply, func(ctx context.Context, h *host.Host) (r *v1.Result, err error) {
		result, err = h.Upgrade(ctx, opts.UpgradeOptions)
		return result, err
	})
	if err != nil {
		return err
	}
	return unchanged(result, opts.Unchanged77)
}

func runUpgradeCheck(ctx context.Context, e *env, opts upgradeOptions) error {
	var result *v1.Result
	check := func(h *host.Host, ctx context.Context) (r *v1.Result, err error) {
		result, err = h.CheckUpgrade(ctx, opts.Tag)
		return result, err
	}
	if err := show(ctx, e, os.Geteuid() == 0, check, updateText); err != nil {
		return err
	}
	return unchanged(result, opts.Unchanged77)
}

func updateText(r *v1.Result) string {
	image := oneLine(imageName(r.Image.Image))
	if !r.Changed {
		return fmt.Sprintf("No update: %s is still at %s.\n", image, r.Image.ImageDigest)
	}
	return fmt.Sprintf("Update available: %s %s (%s).\n%s", image, oneLine(deref(r.Image.Version)), r.Image.ImageDigest, packageLines(r.PackageChanges, "  "))
}
