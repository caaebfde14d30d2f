# Built by `make image` and by release/assemble.sh, which put a static binary and Mozilla's certificate authorities beside it.
FROM scratch
COPY ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY ocivol /ocivol
ENTRYPOINT ["/ocivol"]
