# Built by `make image`, which puts the static binary and Mozilla's certificate authorities beside it.
FROM scratch
COPY ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY ocivol /ocivol
ENTRYPOINT ["/ocivol"]
