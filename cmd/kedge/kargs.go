package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/host"
)

type kargsOptions struct {
	Append, Delete, Replace      cli.StringSlice
	AppendMissing, DeletePresent cli.StringSlice
	changeOptions
}

func (o *kargsOptions) AddFlags() []cli.Flag {
	return append([]cli.Flag{
		&cli.StringSliceFlag{Name: "append", Usage: "add `K=V` at the end", Destination: &o.Append},
		&cli.StringSliceFlag{Name: "append-if-missing", Usage: "add `K=V` unless it is there", Destination: &o.AppendMissing},
		&cli.StringSliceFlag{Name: "delete", Usage: "take `K=V` away; K alone where it is there once", Destination: &o.Delete},
		&cli.StringSliceFlag{Name: "delete-if-present", Usage: "take `K=V` away if it is there", Destination: &o.DeletePresent},
		&cli.StringSliceFlag{Name: "replace", Usage: "change `K=V=NEW`; K=NEW where K is there once", Destination: &o.Replace},
	}, o.changeOptions.AddFlags()...)
}

func cmdKargs(e *env) *cli.Command {
	var opts kargsOptions
	return &cli.Command{
		Name:  "kargs",
		Usage: "show or change kernel arguments",
		Description: "Without a flag, prints the kernel arguments of the deployment that the next boot takes, with\n" +
			"whose each is: the image's (kargs.d; it comes and goes with the image), the machine's (given\n" +
			"at the installation or by another program) or the user's (kedge kargs).\n" +
			"A change makes a new deployment of the same image; rollback leads back.",
		UsageText: "kedge kargs --append console=ttyS0,115200 --delete quiet",
		Flags:     opts.AddFlags(),
		Action:    withoutOperands(func(c *cli.Context) error { return runKargs(c.Context, e, opts) }),
	}
}

func runKargs(ctx context.Context, e *env, opts kargsOptions) error {
	edit := host.KargsOptions{
		Append: opts.Append.Value(), Delete: opts.Delete.Value(), Replace: opts.Replace.Value(),
		AppendMissing: opts.AppendMissing.Value(), DeletePresent: opts.DeletePresent.Value(),
	}
	if edit.Empty() {
		return show(ctx, e, false, (*host.Host).ListKargs, kargsText)
	}
	return opts.change(ctx, e, func(ctx context.Context, h *host.Host) (*v1.Result, error) { return h.Kargs(ctx, edit) })
}

func kargsText(kargs []v1.Karg) string {
	var b strings.Builder
	for _, k := range kargs {
		fmt.Fprintf(&b, "%-8s %s\n", k.Owner, oneLine(k.Arg))
	}
	return b.String()
}
