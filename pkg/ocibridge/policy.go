package ocibridge

import (
	"context"
	"errors"
	"io/fs"
	"net"

	"go.podman.io/image/v5/signature"
	"go.podman.io/image/v5/types"
	"go.podman.io/storage/pkg/configfile"

	"github.com/kedge-os/kedge/pkg/fault"
)

// checkPolicy asks policy.json whether the image may be used. The unparsed
// images are the manifest that the reference names and, where that is a list,
// the chosen instance; one of them must be allowed: bootc's proxy asks for the
// list and podman for the instance, and either one's signature pins what is
// read.
//
// A machine without policy.json refuses every image, as skopeo and with it
// bootc do.
func checkPolicy(ctx context.Context, sys *types.SystemContext, ref Reference, candidates ...types.UnparsedImage) (err error) {
	if ref.Verify == OSTreeRemote {
		return fault.New(fault.Untrusted, "switch to the image with ostree-image-signed and a policy.json, or unverified",
			"%s is to be verified with the keys of the ostree remote %q, which kedge does not do", ref, ref.Remote)
	}
	policy, err := signature.DefaultPolicy(sys)
	switch {
	case errors.Is(err, configfile.ErrConfigFileNotFound), errors.Is(err, fs.ErrNotExist):
		return fault.New(fault.Untrusted, `install containers-common (Debian: golang-github-containers-common), or write /etc/containers/policy.json; {"default":[{"type":"insecureAcceptAnything"}]} accepts unsigned images`,
			"there is no signature policy, so nothing is trusted: %w", err)
	case err != nil:
		return fault.New(fault.Untrusted, "correct policy.json (man containers-policy.json)", "the signature policy cannot be read: %w", err)
	}
	pc, err := signature.NewPolicyContext(policy)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pc.Destroy()) }()
	pc.RequireSignatureVerification(ref.Verify == Signed)

	var refused error
	for _, c := range candidates {
		allowed, err := pc.IsRunningImageAllowed(ctx, c)
		if allowed {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if refused == nil {
			refused = err
		}
	}
	return refusal(ref, refused)
}

func refusal(ref Reference, err error) error {
	hint := "check that the image is signed, and the key in policy.json (man containers-policy.json)"
	if ref.Verify == Signed {
		hint = "the origin asks for a signed image: give policy.json a signedBy or sigstoreSigned requirement for it, or switch without --enforce-sigpolicy"
	}
	var network net.Error
	var file *fs.PathError // a key of the policy; its errno looks like a network's
	if kind := fault.KindOf(classify(err, "")); errors.As(err, &network) && !errors.As(err, &file) || kind == fault.Denied {
		return classify(err, "reading the signatures of "+ref.String())
	}
	return fault.New(fault.Untrusted, hint, "the signature policy refuses %s: %w", ref, err)
}
