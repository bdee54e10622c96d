package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/host"
)

func cmdPkg(e *env) *cli.Command {
	return &cli.Command{
		Name:  "pkg",
		Usage: "put packages on the image of this host",
		Description: "The packages that are asked for become one more layer on the image, made by the image's own\n" +
			"package manager in a sandbox, and stay over upgrades. A change makes a new deployment;\n" +
			"rollback leads back.",
		UsageText:   "kedge pkg add htop",
		Subcommands: []*cli.Command{cmdPkgAdd(e), cmdPkgRemove(e), cmdPkgList(e), cmdPkgSearch(e), cmdPkgOverride(e), cmdPkgRefresh(e)},
	}
}

type pkgOptions struct {
	host.PackagesOptions
	Also    cli.StringSlice // the other direction in the same transaction
	Install cli.StringSlice // packages to add in it
	Yes     bool
	changeOptions
}

func (o *pkgOptions) AddFlags() []cli.Flag {
	return append([]cli.Flag{
		&cli.BoolFlag{Name: "dry-run", Usage: "only show what would be layered", Destination: &o.DryRun},
		&cli.BoolFlag{Name: "download-only", Usage: "fetch the packages, and change nothing", Destination: &o.DownloadOnly},
		&cli.BoolFlag{Name: "cache-only", Usage: "use what was fetched before; no network", Destination: &o.CacheOnly},
		&cli.BoolFlag{Name: "idempotent", Usage: "make no error of what is there already, or not there", Destination: &o.Idempotent},
		&cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "accepted for scripts: kedge asks nothing", Destination: &o.Yes},
	}, o.changeOptions.AddFlags()...)
}

func cmdPkgAdd(e *env) *cli.Command {
	var opts pkgOptions
	return &cli.Command{
		Name: "add", Usage: "put packages on the image", ArgsUsage: "NAME|FILE…",
		Description: "NAME is what the image's package manager takes: a name, a version, with dnf a provide too.\n" +
			"FILE ends in .deb or .rpm and is kept. The repositories are the image's, and those in /etc.",
		UsageText: "kedge pkg add htop ./agent-1.2.rpm --remove nano",
		Flags: append(opts.AddFlags(),
			&cli.StringSliceFlag{Name: "remove", Usage: "in the same change, take `NAME` off again", Destination: &opts.Also},
			&cli.BoolFlag{Name: "required", Usage: "hold updates back that cannot take what is added", Destination: &opts.Required}),
		Action: func(c *cli.Context) error {
			opts.Verb, opts.Add, opts.Remove = "pkg add", c.Args().Slice(), opts.Also.Value()
			return runPkg(c.Context, e, opts, opts.Add)
		},
	}
}

func cmdPkgRemove(e *env) *cli.Command {
	var opts pkgOptions
	return &cli.Command{
		Name: "remove", Usage: "take packages off again that were added", ArgsUsage: "NAME…",
		Description: "Takes off what `kedge pkg add` put on, with what was only needed for it. Without any package\n" +
			"left, the host is on the plain image again.",
		UsageText: "kedge pkg remove htop",
		Flags: append(opts.AddFlags(),
			&cli.StringSliceFlag{Name: "add", Usage: "in the same change, add `NAME`", Destination: &opts.Also}),
		Action: func(c *cli.Context) error {
			opts.Verb, opts.Remove, opts.Add = "pkg remove", c.Args().Slice(), opts.Also.Value()
			return runPkg(c.Context, e, opts, opts.Remove)
		},
	}
}

func runPkg(ctx context.Context, e *env, opts pkgOptions, operands []string) error {
	if len(operands) == 0 {
		return fault.New(fault.Usage, "kedge "+opts.Verb+" --help shows what it takes", "%s: NAME is missing", opts.Verb)
	}
	return runPkgChange(ctx, e, opts)
}

func runPkgChange(ctx context.Context, e *env, opts pkgOptions) error {
	if opts.DryRun && opts.DownloadOnly || opts.Apply && (opts.DryRun || opts.DownloadOnly) {
		return fault.New(fault.Usage, "leave one of them out", "%s: --dry-run, --download-only and --apply exclude each other", opts.Verb)
	}
	op := func(ctx context.Context, h *host.Host) (*v1.Result, error) {
		return h.ChangePackages(ctx, opts.PackagesOptions)
	}
	if !opts.DryRun && !opts.DownloadOnly {
		return opts.change(ctx, e, op)
	}
	var result *v1.Result
	err := e.withHost(ctx, true, func(h *host.Host) (err error) {
		result, err = op(ctx, h)
		return err
	})
	if err != nil {
		return err
	}
	return e.print(result, func() string { return packagesChangeText(result.Packages) })
}

// packagesChangeText is what a change would come to: what changes, and behind it
// the packages that stay on the image.
func packagesChangeText(c *v1.PackageChange) string {
	if c == nil {
		return "No change.\n"
	}
	var rows [][]string
	line := func(sign string, list []v1.Package) {
		for _, p := range list {
			note := p.Repository
			if p.Replaces != "" {
				note = strings.TrimSpace(note + " (the image has " + p.Replaces + ")")
			}
			rows = append(rows, []string{sign + " " + p.Name, p.Version, p.Arch, note})
		}
	}
	line("+", c.Added)
	line("~", c.Changed)
	line("-", c.Dropped)
	line("-", c.Removed)
	line("=", slices.DeleteFunc(slices.Clone(c.Layered), func(p v1.Package) bool {
		return slices.Contains(c.Added, p) || slices.Contains(c.Changed, p)
	}))
	var b strings.Builder
	b.WriteString(columns(rows))
	var bytes int64
	for _, p := range c.Layered {
		bytes += p.Size
	}
	for _, name := range c.Inactive {
		fmt.Fprintf(&b, "= %s: nothing to do on this image\n", oneLine(name))
	}
	fmt.Fprintf(&b, "%s on the image, %s of package files.\n", count(len(c.Layered), "package"), size(bytes))
	return b.String()
}
