package host

import (
	"path/filepath"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/ocibridge"
)

// reference parses IMAGE of the command line. With signed, policy.json has to
// ask for a signature now and at every upgrade. A path is made absolute: the
// reference is followed from other directories later.
func reference(image, transport string, signed bool) (ocibridge.Reference, error) {
	r, err := ocibridge.ParseReference(image, transport)
	if err != nil {
		return r, err
	}
	switch r.Transport {
	case ocibridge.OCI, ocibridge.OCIArchive, ocibridge.Dir:
		if r.Name, err = filepath.Abs(r.Name); err != nil {
			return r, err
		}
	}
	if signed {
		r.Verify = ocibridge.Signed
	}
	return r, nil
}

// apiReference is the reference as bootc's JSON has it. bootc leaves the
// signature out where none is asked for.
func apiReference(r ocibridge.Reference) v1.ImageReference {
	out := v1.ImageReference{Image: r.Name, Transport: r.Transport}
	switch r.Verify {
	case ocibridge.Signed:
		out.Signature = &v1.ImageSignature{Kind: v1.SignatureContainerPolicy}
	case ocibridge.OSTreeRemote:
		out.Signature = &v1.ImageSignature{Kind: v1.SignatureOSTreeRemote, Remote: r.Remote}
	}
	return out
}
